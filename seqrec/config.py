"""One training run as data: frozen, strict, complete. Without torch or ray, so that a login node can validate and plan.

`parse` turns a nested mapping (a YAML file) into a `Run`; every mistake becomes one `ConfigError` that names the key,
the value and the law. `Run.identity` is what decides a result (not where the file lies or how evaluation is batched):
sweeps hash it into the cell key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from seqrec import remote
from seqrec.errors import ConfigError, message
from seqrec.loss_config import (
    LOSSES as LOSSES,
    Bce as Bce,
    BcePlus as BcePlus,
    Cce as Cce,
    CceMinus as CceMinus,
    Ce as Ce,
    CeMinus as CeMinus,
    Count as Count,
    Frozen as Frozen,
    Gbce as Gbce,
    Loss as Loss,
    Probability as Probability,
    Rece as Rece,
    Sce as Sce,
)
from seqrec.model_config import MODELS as MODELS, Bert4rec as Bert4rec, Model as Model, Sasrec as Sasrec

NUMERICS_VERSION = 6
"""Raised whenever the same configuration, seed and data would give other numbers; part of every cell key."""

CUTOFFS = (1, 5, 10, 20, 50)
"""The k of every ranking metric."""

EVALUATION_BYTES = 2**28
"""The default of `evaluation.memory_bytes`: 256 MiB."""

SELECTION_METRIC = "valid/ndcg_at_10"
"""What patience, the best checkpoint and the schedulers look at."""


PROTOCOLS: dict[str, dict[str, float | int | str]] = {
    "leave_one_out": {},
    "temporal": {"quantile": 0.95},
    "replay": {"quantile": 0.9, "valid_users": 0.05, "split_seed": 42, "test_users": "trained"},
}
"""Split -> the keys of `Data` that it reads, with the published values."""


class Data(Frozen):
    """Which interactions, split how. `path`: a canonical parquet file, the name of a bundled set, or an address such as
    s3://bucket/file.parquet, of which the secrets are left out here (`seqrec.remote`).

    null in a key of the split stands for the value of the split's paper; a key that the split does not read is refused.
    """

    path: Annotated[str, Field(min_length=1), AfterValidator(remote.conceal)]
    split: Literal["leave_one_out", "temporal", "replay"] = "leave_one_out"
    quantile: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Where the split cuts time: of all timestamps (temporal) or all rows in order of time (replay)."""
    valid_users: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of the users before the cut that are set aside for validation (replay)."""
    split_seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    """Draws the validation users (replay)."""
    test_users: Literal["trained", "with_history"] | None = None
    """Who is tested: users in training, as published, or whoever has a history (replay)."""

    @model_validator(mode="after")
    def _split_reads_its_keys(self) -> Data:
        for key in ("quantile", "valid_users", "split_seed", "test_users"):
            if (value := getattr(self, key)) is not None and key not in PROTOCOLS[self.split]:
                raise ValueError(f"expected null with split {self.split}, which does not read it|{key}|{value!r}")
        return self

    def protocol(self) -> dict[str, Any]:
        """The keys that the split reads, none of them null."""
        given = {key: getattr(self, key) for key in PROTOCOLS[self.split]}
        return PROTOCOLS[self.split] | {key: value for key, value in given.items() if value is not None}


class Train(Frozen):
    """Adam on one window a user and epoch: the user's most recent items."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 1235
    batch_size: Count = 128
    epochs: Count = 300
    patience: Count | None = 10
    """Training ends after this many validations in a row without a new best; null: never early."""
    valid_every: Count = 1
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    beta1: Probability = 0.9
    beta2: Probability = 0.98
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    drop_last: bool = False
    """True, as published: an epoch's last, smaller batch is dropped."""
    optimizer: Literal["adam", "rowwise_adam", "lazy_adam"] = "adam"
    """What Adam keeps and touches of the item table; `seqrec.optimizers` says more."""
    engine: Literal["auto", "eager", "captured"] = "auto"
    """eager: operation by operation, the reference; captured: steps replayed as CUDA graphs, with fused kernels; auto:
    captured on a GPU, eager elsewhere."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the encoder's matrix products and attention; weights, norms and optimiser are always fp32. auto: bf16 where
    steps are captured, else fp32."""
    kernels: Literal["auto", "fused", "eager"] = "auto"
    """Of the loss. eager: PyTorch's operations in fp32, the reference; fused: kernels with 16-bit operands and fp32
    sums; auto: fused where steps are captured in bf16, if the kernels can run there."""


class Evaluation(Frozen):
    """Full ranking of the held-out item over the catalog."""

    exclude_seen: bool = True
    """Items of the user's history are no candidates. A repeated item is then a certain miss."""
    batch_size: Count = 256
    """Users encoded at a time; bounds memory, does not change results."""
    memory_bytes: Annotated[int, Field(ge=2**16)] = EVALUATION_BYTES
    """Most bytes of scores, and of what is made of them, while users are ranked; does not change results."""


class Run(Frozen):
    """Everything that one training needs."""

    data: Data
    model: Model
    loss: Loss
    train: Train = Train()
    evaluation: Evaluation = Evaluation()

    def identity(self) -> dict[str, Any]:
        """The part that decides the numbers, as plain JSON values: of the data, the split and all keys that it reads (a
        digest stands for the path); without how evaluation is batched."""
        tree = self.model_dump(mode="json")
        tree["data"] = {"split": self.data.split, **self.data.protocol()}
        del tree["evaluation"]["batch_size"], tree["evaluation"]["memory_bytes"]
        return tree


SECTIONS: dict[str, type[Frozen]] = {"data": Data, "train": Train, "evaluation": Evaluation}

NAMED: dict[str, dict[str, type[Frozen]]] = {"model": MODELS, "loss": LOSSES}
"""Sections whose `name` decides which keys they have."""


def known_keys(model: str | None = None, loss: str | None = None) -> set[str]:
    """Dotted keys of a run; of one model and one loss, or of all of them."""
    groups: list[tuple[str, Iterable[type[Frozen]]]] = [(name, [kind]) for name, kind in SECTIONS.items()]
    groups.append(("model", [MODELS[model]] if model in MODELS else MODELS.values()))
    groups.append(("loss", [LOSSES[loss]] if loss in LOSSES else LOSSES.values()))
    return {f"{section}.{field}" for section, kinds in groups for kind in kinds for field in kind.model_fields}


def parse(tree: Mapping[str, Any], source: str = "") -> Run:
    """A nested mapping as a validated `Run`.

    source: put before the message, a file's name as a rule. Raises ConfigError for the first mistake.
    """
    try:
        return Run.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError((f"{source}: " if source else "") + _explain(error, tree)) from None


Section = TypeVar("Section", bound=Frozen)


def parse_section(kind: type[Section], tree: object, place: str) -> Section:
    """One section by itself, validated. `place`: its dotted place in the file; every message starts with it.

    Raises ConfigError for the first mistake.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    if first["type"] == "value_error":
        raise ConfigError(f"{place}.{_broken_law(first)}")
    if not first["loc"]:
        raise ConfigError(message(place, tree, "a mapping"))
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        hint = suggest(field, kind.model_fields)
        raise ConfigError(f"{place}.{field}: unknown key." + (f" hint: {hint}" if hint else ""))
    if first["type"] == "missing":
        raise ConfigError(f"{place}.{field}: missing; expected a value.")
    raise ConfigError(message(f"{place}.{field}", first["input"], _laws(p for p in problems if p["loc"][0] == field)))


def check_value(kind: type[Frozen], field: str, value: object, place: str) -> None:
    """Raises ConfigError, its message starting with `place`, unless the value alone satisfies a section's field."""
    try:
        _field(kind, field).validate_python(value)
    except ValidationError as error:
        raise ConfigError(message(place, value, _laws(error.errors()))) from None


@cache
def _field(kind: type[Frozen], field: str) -> TypeAdapter[Any]:
    info = kind.model_fields[field]
    form: Any = info.annotation
    for law in info.metadata:
        form = Annotated[form, law]
    return TypeAdapter(form, config=ConfigDict(strict=True, allow_inf_nan=False))


def _laws(problems: Iterable[Any]) -> str:
    """The laws of one value's complaints; a union of types complains once for each of them."""
    return " or ".join(dict.fromkeys(_law(p["type"], p.get("ctx", {}), p["msg"]) for p in problems))


def suggest(key: str, candidates: Iterable[str]) -> str | None:
    """`did you mean ...?` for the closest candidate, or None."""
    close = difflib.get_close_matches(key, sorted(candidates), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """The first of pydantic's complaints in the project's form."""
    # An unknown key is the likeliest cause of whatever else is wrong, so it is told first.
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    kinds = NAMED.get(str(first["loc"][0]), {})
    place = [str(part) for part in first["loc"] if part not in kinds]
    key = ".".join(place)
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "extra_forbidden":
        section = tree.get(place[0])
        name = section.get("name") if kinds and isinstance(section, Mapping) else None
        known = known_keys(**{place[0]: str(name)}) if name else known_keys()
        hint = suggest(key, known | {"data", "model", "loss", "train", "evaluation"})
        owner = f" of {place[0]} {name}" if name else ""
        return f"{key}: unknown key{owner}." + (f" hint: {hint}" if hint else "")
    if kind == "missing":
        return f"{key}: missing; expected a value."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        got = value.get("name") if isinstance(value, Mapping) else value
        return message(f"{key}.name", got, f"one of {', '.join(kinds)}", suggest(str(got), kinds))
    if kind == "value_error":
        return f"{key}.{_broken_law(first)}"
    return message(key, value, _law(kind, context, first["msg"]))


def _broken_law(problem: Any) -> str:
    """What a section's own validator says, `law|field|value`, in the project's form."""
    law, field, got = str(problem["ctx"]["error"]).split("|", 2)
    return f"{field}: got {got}; {law}."


def _law(kind: str, context: Mapping[str, Any], text: str) -> str:
    laws = {
        "greater_than": "a number > {gt}",
        "greater_than_equal": "a number >= {ge}",
        "less_than": "a number < {lt}",
        "less_than_equal": "a number <= {le}",
        "literal_error": "{expected}",
        "int_type": "an integer",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
        "string_too_short": "text that is not empty",
        "finite_number": "a finite number",
        "model_type": "a mapping",
        "model_attributes_type": "a mapping",
        "dict_type": "a mapping",
    }
    return laws[kind].format(**context) if kind in laws else text[:1].lower() + text[1:].rstrip(".")
