"""A mistake in a configuration is told once, with key, value and law; what decides a result decides the identity."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest

from seqrec import config, yamlfile
from seqrec.errors import ConfigError

BASE: dict[str, Any] = {
    "data": {"path": "amazon_beauty_5core"},
    "model": {"name": "sasrec"},
    "loss": {"name": "rece", "n_buckets": 583},
}


def changed(key: str, value: object, base: dict[str, Any] = BASE) -> dict[str, Any]:
    tree = copy.deepcopy(base)
    node = tree
    *path, last = key.split(".")
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return tree


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("loss.n_bucket", 3, "loss.n_bucket: unknown key of loss rece. hint: did you mean loss.n_buckets?"),
        ("loss.n_negatives", 3, "loss.n_negatives: unknown key of loss rece."),
        ("loss.buckets_per_chunk", 2, "loss.buckets_per_chunk: got 2; expected a divisor of loss.n_buckets (583)."),
        ("loss.name", "rec", "loss.name: got 'rec'; expected one of ce, bce,"),
        ("loss.n_buckets", 0, "loss.n_buckets: got 0; expected a number >= 1."),
        ("loss", 3, "loss: got 3; expected a mapping."),
        ("train.batch_size", "8", "train.batch_size: got '8'; expected an integer."),
        ("train.batch_size", True, "train.batch_size: got True; expected an integer."),
        ("train.batch_size", 8.5, "train.batch_size: got 8.5; expected an integer."),
        ("train.learning_rate", float("nan"), "train.learning_rate: got nan; expected a finite number."),
        ("train.learning_rate", 0.0, "train.learning_rate: got 0.0; expected a number > 0.0."),
        ("train.drop_last", 1, "train.drop_last: got 1; expected true or false."),
        ("train", [1], "train: got [1]; expected a mapping."),
        ("trian", {}, "trian: unknown key. hint: did you mean train?"),
        ("model.n_heads", 3, "model.n_heads: got 3; expected a divisor of hidden_size (64)."),
        ("model.dropout", 1.0, "model.dropout: got 1.0; expected a number < 1.0."),
        ("model", {}, "model.name: got None; expected one of sasrec, bert4rec."),
        (
            "model.name",
            "bert",
            "model.name: got 'bert'; expected one of sasrec, bert4rec. hint: did you mean bert4rec?",
        ),
        ("model.max_len", 3, "model.max_len: unknown key of model sasrec. hint: did you mean model.max_length?"),
        ("model.mask_probability", 0.2, "model.mask_probability: unknown key of model sasrec."),
        ("data.split", "loo", "data.split: got 'loo'; expected 'leave_one_out', 'temporal' or 'replay'."),
        (
            "data.quantile",
            0.9,
            "data.quantile: got 0.9; expected null with split leave_one_out, which",
        ),
        (
            "data",
            {"path": "x", "split": "temporal", "test_users": "trained"},
            "data.test_users: got 'trained'; ",
        ),
        (
            "data",
            {"path": "x", "split": "replay", "valid_users": 1.0},
            "data.valid_users: got 1.0; expected a number",
        ),
        ("data.path", "", "data.path: got ''; expected text that is not empty."),
    ],
)
def test_a_mistake_names_key_value_and_law(key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(changed(key, value), "run.yaml")
    assert str(caught.value).startswith(f"run.yaml: {told}")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("n_heads", 3, "model.n_heads: got 3; expected a divisor of hidden_size (256)."),
        ("mask_probability", 0.0, "model.mask_probability: got 0.0; expected a number > 0.0."),
        ("mask_probability", 1.0, "model.mask_probability: got 1.0; expected a number < 1.0."),
        ("head", "own", "model.head: got 'own'; expected 'untied' or 'tied'."),
        ("max_length", 1, "model.max_length: got 1; expected a number >= 2."),
        ("hidden_size", 1, "model.hidden_size: got 1; expected a number >= 2."),
        ("mask_padding", True, "model.mask_padding: unknown key of model bert4rec."),
    ],
)
def test_a_mistake_in_bert4rec_names_key_value_and_law(key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(changed(f"model.{key}", value, {**BASE, "model": {"name": "bert4rec"}}))
    assert str(caught.value).startswith(told)


def test_bert4rec_is_the_published_one_by_default() -> None:
    model = config.parse({**BASE, "model": {"name": "bert4rec"}}).model
    assert model == config.Bert4rec(
        name="bert4rec",
        max_length=128,
        hidden_size=256,
        n_blocks=2,
        n_heads=2,
        dropout=0.1,
        mask_probability=0.15,
        head="untied",
        head_bias=True,
    )


def test_a_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^model: missing"):
        config.parse({key: value for key, value in BASE.items() if key != "model"})


@pytest.mark.parametrize("scope", ["group", "batch"])
def test_history_cannot_be_excluded_where_rows_of_many_users_share_negatives(scope: str) -> None:
    loss = {"name": "ce_minus", "n_negatives": 4, "negatives_scope": scope}
    with pytest.raises(ConfigError, match=r"loss\.exclude_history: got True"):
        config.parse({**BASE, "loss": loss})


def test_every_loss_of_the_papers_has_a_class_of_its_name() -> None:
    assert list(config.LOSSES) == ["ce", "bce", "bce_plus", "gbce", "ce_minus", "sce", "rece", "cce", "cce_minus"]


def test_the_parameter_arrives_and_no_other_moves() -> None:
    """Both published sweep runners lose parameters on the way: each key set alone changes that field alone."""
    losses: dict[str, dict[str, Any]] = {
        name: {
            "name": name,
            **{key: 8 for key, field in kind.model_fields.items() if field.is_required() and key != "name"},
        }
        for name, kind in config.LOSSES.items()
    }
    other: dict[str, object] = {
        "data.split": "temporal", "data.path": "other", "data.quantile": 0.8, "data.valid_users": 0.1,
        "data.split_seed": 7, "data.test_users": "with_history", "model.initialization": "xavier_normal",
        "model.ffn_dropout": "after_relu", "model.mask_padding": True,
        "model.mask_probability": 0.3, "model.head": "tied", "model.head_bias": False, "model.dropout": 0.11,
        "train.drop_last": True,
        "train.patience": None, "train.beta1": 0.8, "train.beta2": 0.9, "train.learning_rate": 0.5,
        "train.weight_decay": 0.5, "evaluation.exclude_seen": False, "loss.gbce_t": 0.5, "loss.sampling": "popularity",
        "loss.negatives_scope": "position", "loss.with_replacement": True, "loss.exclude_history": False,
        "loss.correction": "log_q", "loss.mix_x": True, "loss.chunk_bytes": 2**20, "loss.buckets_per_chunk": 4,
        "evaluation.memory_bytes": 2**20,
        "train.engine": "eager", "train.precision": "bf16", "train.optimizer": "lazy_adam",
        "train.kernels": "fused",
    }  # fmt: skip
    checked = 0
    for model, (name, loss) in itertools.product(config.MODELS, losses.items()):
        plain = {**BASE, "model": {"name": model}, "loss": loss}
        for key in config.known_keys(model, name) - {"model.name", "loss.name"}:
            value = other.get(key, 16)
            # A split refuses the keys that it does not read; replay reads all of them.
            replays = key.startswith("data.") and key not in ("data.path", "data.split")
            base = changed("data.split", "replay", plain) if replays else plain
            before = _flat(config.parse(base))
            after = (
                _flat(config.parse(changed(key, value, base))) if key != "loss.sampling" or name != "ce_minus" else None
            )
            if after is None:
                continue
            assert {k for k in after if after[k] != before[k]} == {key}
            assert after[key] == value
            checked += 1
    assert checked > 2 * 9 * 18


def _flat(run: config.Run) -> dict[str, object]:
    return {f"{section}.{key}": value for section, keys in run.model_dump().items() for key, value in keys.items()}


def test_identity_leaves_out_only_what_cannot_change_a_number() -> None:
    run = config.parse(BASE)
    moved = config.parse(changed("data.path", "elsewhere.parquet"))
    bigger = config.parse(changed("evaluation.batch_size", 7))
    tighter = config.parse(changed("evaluation.memory_bytes", 2**20))
    assert run.identity() == moved.identity() == bigger.identity() == tighter.identity()
    for key, value in (
        ("train.seed", 7),
        ("loss.rounds", 2),
        ("evaluation.exclude_seen", False),
        ("data.split", "temporal"),
    ):
        assert config.parse(changed(key, value)).identity() != run.identity()
    assert (
        config.parse(changed("train.learning_rate", 1)).identity()
        == config.parse(changed("train.learning_rate", 1.0)).identity()
    )


def test_identity_holds_every_number_of_the_split_and_no_other() -> None:
    """What null stands for is spelled out, so that a result never depends on a default that may change."""

    def data(**keys: object) -> dict[str, Any]:
        return config.parse({**BASE, "data": {"path": "x", **keys}}).identity()["data"]

    assert data() == {"split": "leave_one_out"}
    assert data(split="temporal") == data(split="temporal", quantile=0.95) == {"split": "temporal", "quantile": 0.95}
    published = {"split": "replay", "quantile": 0.9, "valid_users": 0.05, "split_seed": 42, "test_users": "trained"}
    assert data(split="replay") == data(**published) == published
    for key, value in (("quantile", 0.8), ("valid_users", 0.1), ("split_seed", 0), ("test_users", "with_history")):
        assert data(split="replay", **{key: value}) == published | {key: value}


def test_a_run_written_out_is_read_back() -> None:
    for split in ("leave_one_out", "temporal", "replay"):
        run = config.parse(changed("data.split", split))
        assert config.Run.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3", "line 3 is not valid YAML: key 'a' stands twice"),
        ("- 1", "got list; expected a mapping"),
        ("", "got NoneType; expected a mapping"),
        ("a: [1", "line 1 is not valid YAML"),
        ("1: 3", "key 1 is not text"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: *x", "undefined alias"),
    ],
)
def test_yaml_that_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        yamlfile.loads(text, "space.yaml")
    assert str(caught.value).startswith("space.yaml:")
    assert told in str(caught.value)


def test_yaml_numbers_read_as_people_write_them() -> None:
    assert yamlfile.loads("a: 1e-3\nb: -2E+4\nc: 1.5\nd: 12\ne: 1e3x", "s") == {
        "a": 1e-3, "b": -2e4, "c": 1.5, "d": 12, "e": "1e3x",
    }  # fmt: skip


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        yamlfile.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read"):
        yamlfile.load(tmp_path / "binary.yaml")


def test_a_long_value_does_not_bury_the_law() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(changed("train.batch_size", list(range(1000))))
    assert len(str(caught.value)) < 300
    assert "997, 998, 999]; expected an integer." in str(caught.value)
