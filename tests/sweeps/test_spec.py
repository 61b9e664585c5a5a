"""Reading a search space: what the file means, how blocks and overrides are laid over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seqrec.config import Data
from sweeps import spec
from sweeps.errors import SpecError
from sweeps.spec import Budget, Resources, SchedulerSpec, SweepSpec

BASE = "data: {path: amazon_beauty_5core}\n"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def read(text: str, *overrides: str, data: str | None = None, stem: str = "space") -> SweepSpec:
        path = tmp_path / f"{stem}.yaml"
        path.write_text(BASE + text)
        return spec.load(path, overrides, data)

    return read


def test_least_file_has_defaults(load: Any) -> None:
    read = load("loss: {name: ce}\n", stem="my-sweep_2")
    assert read.name == "my-sweep_2"
    assert read.source.endswith("my-sweep_2.yaml")
    assert read.text == BASE + "loss: {name: ce}\n"
    assert read.data == Data(path="amazon_beauty_5core")
    assert read.objectives == (("valid/ndcg_at_10", "max"), ("memory/peak_gib", "min"))
    assert read.scheduler == SchedulerSpec(name="pareto_asha")
    assert (read.resources, read.budget) == (Resources(), Budget())
    assert len(read.blocks) == 1
    assert read.blocks[0].fixed == {"model.name": "sasrec", "loss.name": "ce"}
    assert read.blocks[0].seeds == read.seeds == (1235,)


def test_everything_said_arrives(load: Any) -> None:
    read = load(
        """
name: all-of_it.2
description: |
  Two
  lines.
model: {max_length: 64}
train: {epochs: 3, patience: null, learning_rate: 1e-3}
loss: {name: rece}
evaluation: {batch_size: 512}
grid: {loss.rounds: [2, 1], train.batch_size: [8, 4]}
seeds: [3, 1]
derived: {loss.n_buckets: a.b * 2}
aliases: {a.b: train.batch_size}
constraints: ["rounds < 9"]
objectives: {time/epoch_s: min}
scheduler: {name: asha, grace_epochs: 2, reduction_factor: 4, shuffle_seed: null}
resources: {cpus_per_trial: 0.5, gpus_per_trial: auto, max_concurrent: 3}
budget: {trials: 5, wall_hours: 1.5}
"""
    )
    block = read.blocks[0]
    assert (read.name, read.description) == ("all-of_it.2", "Two lines.")
    assert block.fixed == {
        "model.name": "sasrec",
        "model.max_length": 64,
        "train.epochs": 3,
        "train.patience": None,
        "train.learning_rate": 1e-3,
        "loss.name": "rece",
        "evaluation.batch_size": 512,
    }
    assert list(block.grid.items()) == [("loss.rounds", (2, 1)), ("train.batch_size", (8, 4))]
    assert block.seeds == (3, 1)
    assert block.derived == {"loss.n_buckets": "a.b * 2"}
    assert block.constraints == ("rounds < 9",)
    assert read.aliases == {"a.b": "train.batch_size"}
    assert read.objectives == (("time/epoch_s", "min"),)
    assert read.scheduler == SchedulerSpec(name="asha", grace_epochs=2, reduction_factor=4.0, shuffle_seed=None)
    assert read.resources == Resources(cpus_per_trial=0.5, gpus_per_trial="auto", max_concurrent=3)
    assert read.budget == Budget(trials=5, wall_hours=1.5)


BLOCKS = """
train: {epochs: 3, batch_size: 8}
grid: {model.dropout: [0.1, 0.2]}
constraints: ["epochs < 9"]
seeds: [1]
blocks:
  - loss: {name: ce}
  - loss: {name: rece, rounds: 4}
    train: {epochs: 5}
    model: {dropout: 0.5}
    grid: {train.batch_size: [16, 32]}
    derived: {loss.n_buckets: batch_size}
    constraints: ["n_buckets < 99"]
    seeds: [2, 3]
"""


def test_a_block_takes_the_place_of_the_base(load: Any) -> None:
    plain, rich = load(BLOCKS).blocks
    assert (plain.place, rich.place) == ("blocks[0]", "blocks[1]")
    assert plain.fixed == {"model.name": "sasrec", "loss.name": "ce", "train.epochs": 3, "train.batch_size": 8}
    assert plain.grid == {"model.dropout": (0.1, 0.2)}
    assert (plain.constraints, plain.seeds, plain.own) == (("epochs < 9",), (1,), ("loss.name",))
    assert rich.fixed["train.epochs"] == 5
    assert rich.fixed["model.dropout"] == 0.5
    assert "train.batch_size" not in rich.fixed
    assert rich.grid == {"train.batch_size": (16, 32)}
    assert rich.derived == {"loss.n_buckets": "batch_size"}
    assert rich.constraints == ("epochs < 9", "n_buckets < 99")
    assert rich.seeds == (2, 3)


def test_another_loss_starts_without_the_bases(load: Any) -> None:
    read = load(
        """
loss: {name: rece, rounds: 4}
grid: {loss.n_extra_chunks: [0, 1], train.batch_size: [4]}
derived: {loss.n_buckets: batch_size}
blocks: [{}, {loss: {name: ce}}]
"""
    )
    same, other = read.blocks
    assert same.derived == {"loss.n_buckets": "batch_size"}
    assert list(same.grid) == ["loss.n_extra_chunks", "train.batch_size"]
    assert {**other.fixed, **other.grid, **other.derived} == {
        "model.name": "sasrec",
        "loss.name": "ce",
        "train.batch_size": (4,),
    }


def test_a_bases_axis_of_the_loss_reaches_the_blocks_that_name_one(load: Any) -> None:
    read = load("grid: {loss.n_negatives: [4, 8]}\nblocks: [{loss: {name: bce}}, {loss: {name: gbce}}]\n")
    assert [block.grid for block in read.blocks] == [{"loss.n_negatives": (4, 8)}] * 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=7", {"train.epochs": 7}),
        ("train.patience=null", {"train.patience": None}),
        ("train.learning_rate=1e-4", {"train.learning_rate": 1e-4}),
        ("model.dropout=0.3", {"model.dropout": 0.3}),
        ("train.batch_size=64", {"train.batch_size": 64}),
        ("train.batch_size=[64, 128]", {"train.batch_size": (64, 128)}),
        ("grid.train.batch_size=[64]", {"train.batch_size": (64,)}),
        ("evaluation.batch_size= 9 ", {"evaluation.batch_size": 9}),
    ],
)
def test_an_override_reaches_every_block(load: Any, override: str, expected: dict[str, Any]) -> None:
    for before, after in zip(load(BLOCKS).blocks, load(BLOCKS, override).blocks, strict=True):
        key = next(iter(expected))
        assert {**after.fixed, **after.grid, **after.derived}[key] == expected[key]
        assert _without(after, key) == _without(before, key)


def _without(block: Any, key: str) -> dict[str, Any]:
    return {k: v for k, v in {**block.fixed, **block.grid, **block.derived}.items() if k != key}


def test_an_override_of_a_losss_key_reaches_the_blocks_that_have_it(load: Any) -> None:
    plain, rich = load(BLOCKS, "loss.rounds=[1, 2]", "loss.n_buckets=6").blocks
    assert "loss.rounds" not in {**plain.fixed, **plain.grid}
    assert rich.grid["loss.rounds"] == (1, 2)
    assert rich.fixed["loss.n_buckets"] == 6
    assert rich.derived == {}


def test_an_override_of_an_expression(load: Any) -> None:
    assert load(BLOCKS, "derived.loss.n_buckets=batch_size + 1").blocks[1].derived == {
        "loss.n_buckets": "batch_size + 1"
    }


def test_overrides_of_the_sweep(load: Any) -> None:
    read = load(
        BLOCKS,
        "name=other",
        "seeds=[7]",
        "scheduler.name=asha",
        "scheduler.grace_epochs=4",
        "resources={cpus_per_trial: 2}",
        "budget.trials=2",
        "data.split=temporal",
        "data.quantile=0.9",
        "objectives={time/epoch_s: min}",
        "constraints=[]",
        data="other.parquet",
    )
    assert read.name == "other"
    assert [block.seeds for block in read.blocks] == [(7,), (7,)]
    assert read.scheduler == SchedulerSpec(name="asha", grace_epochs=4)
    assert read.resources == Resources(cpus_per_trial=2.0)
    assert read.budget == Budget(trials=2)
    assert read.data == Data(path="other.parquet", split="temporal", quantile=0.9)
    assert read.objectives == (("time/epoch_s", "min"),)
    assert [block.constraints for block in read.blocks] == [(), ("n_buckets < 99",)]
    assert read.overrides[0] == "name=other"


def test_the_last_override_wins(load: Any) -> None:
    assert load(BLOCKS, "train.epochs=7", "train.epochs=8").blocks[0].fixed["train.epochs"] == 8


def test_another_loss_by_override(load: Any) -> None:
    assert load("loss: {name: rece, n_buckets: 4}\n", "loss.name=ce").blocks[0].fixed == {
        "model.name": "sasrec",
        "loss.name": "ce",
    }
    with pytest.raises(SpecError, match=r"--set loss\.name: got 'ce'; this sweep has 2 blocks"):
        load(BLOCKS, "loss.name=ce")


def test_a_mistake_in_a_block_names_the_block(load: Any) -> None:
    with pytest.raises(SpecError, match=r"space\.yaml: blocks\[1\]\.derived\.loss\.n_buckets: got 'rouns'"):
        load(BLOCKS.replace("n_buckets: batch_size", "n_buckets: rouns"))


def test_a_name_that_one_block_lacks_is_refused_where_it_stands(load: Any) -> None:
    with pytest.raises(SpecError, match=r"space\.yaml: constraints\[0\]: got 'rounds < 9'; expected known names"):
        load(BLOCKS.replace("epochs < 9", "rounds < 9"))


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a/b", "a b", "é", "a" * 101, "3.5", "null", "[a]"])
def test_a_name_must_name_a_folder(load: Any, name: str) -> None:
    text = name if name in ("null", "[a]", "3.5") else f"'{name}'"
    with pytest.raises(SpecError, match=r"space\.yaml: name: got .*; expected at most 100 of"):
        load(f"name: {text}\nloss: {{name: ce}}\n")


def test_evaluations_batch_size_has_no_short_name(load: Any) -> None:
    """The short name is training's, whatever evaluation's is set to."""
    block = load("loss: {name: rece}\nevaluation: {batch_size: 512}\nderived: {loss.n_buckets: batch_size}\n").blocks[0]
    assert block.program.reads("train.batch_size")
    assert not block.program.reads("evaluation.batch_size")


def test_unreadable_bytes_are_a_message(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(SpecError, match=r"latin\.yaml: cannot be read"):
        spec.load(path)
