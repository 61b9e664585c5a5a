"""The parts of a search space that make cells: fixed values, axes, expressions, seeds; a block's laid over the base's.

Reading goes in two steps, because what a key means depends on the loss, which a block may change: `read` takes one
mapping of the file as it stands into a `Layer`, `lay_over` joins two of them, and `check` makes of the joined one a
`Block`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seqrec.config import NAMED, Frozen, check_value, known_keys, suggest
from seqrec.errors import ConfigError, message, shortened
from sweeps import derive
from sweeps.cells import Scalar
from sweeps.errors import SpecError
from sweeps.names import names, sections

Value = Scalar | None

SECTIONS = ("model", "loss", "train", "evaluation")
BLOCK_KEYS = (*SECTIONS, "grid", "derived", "constraints", "seeds")

DEFAULT_MODEL = "sasrec"
"""Where a search space names none."""


@dataclass(frozen=True)
class Block:
    """One part of a sweep, complete: the base's keys with the block's own laid over them."""

    place: str
    """Where it stands in the file: `` for the base, `blocks[2]`."""
    fixed: dict[str, Value]
    """By dotted key; `model.name` and `loss.name` among them, never `data.*` or `train.seed`."""
    grid: dict[str, tuple[Scalar, ...]]
    """Axes by dotted key, in the order of declaration."""
    derived: dict[str, str]
    """Expressions by dotted key."""
    constraints: tuple[str, ...]
    seeds: tuple[int, ...]
    own: tuple[str, ...]
    """Keys that this block, not the base, fixes: they tell blocks apart."""
    program: derive.Program = field(repr=False)
    """`derived` and `constraints`, checked and in order."""
    places: dict[str, str] = field(repr=False)
    """Where each key stands, for messages."""
    kinds: Mapping[str, type[Frozen]] = field(repr=False)
    """The class of every section of its runs."""


@dataclass
class Layer:
    """One mapping of the file, its shape checked, its keys not yet."""

    place: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    constraints: list[tuple[str, Any]] = field(default_factory=list)
    """(place, text)"""
    seeds: tuple[int, ...] | None = None
    places: dict[str, str] = field(default_factory=dict)


def read(tree: Mapping[str, Any], source: str, place: str = "") -> Layer:
    """The layer that a mapping of the file describes. Raises SpecError for wrong shapes and keys that stand twice."""
    root = f"{source}: {place}." if place else f"{source}: "
    layer = Layer(place)
    for section in SECTIONS:
        for name, value in _mapping(tree.get(section), root + section).items():
            fix(layer, f"{section}.{name}", value, f"{root}{section}.{name}")
    for key, values in _mapping(tree.get("grid"), f"{root}grid").items():
        add_axis(layer, key, values, f"{root}grid.{key}")
    for key, text in _mapping(tree.get("derived"), f"{root}derived").items():
        add_expression(layer, key, text, f"{root}derived.{key}")
    constraints = tree.get("constraints")
    if constraints is not None:
        if not isinstance(constraints, list):
            raise SpecError(
                message(f"{root}constraints", constraints, "a list of comparisons", '["n_negatives < 100"]')
            )
        layer.constraints = [(f"{root}constraints[{i}]", text) for i, text in enumerate(constraints)]
    if "seeds" in tree:
        layer.seeds = read_seeds(tree["seeds"], f"{root}seeds")
    return layer


def read_seeds(values: object, place: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise SpecError(message(place, values, "a list of at least one seed", "seeds: [1235, 37, 2451]"))
    for seed in values:
        _check(sections(None, None)["train"], "seed", seed, place)
    _refuse_repeats(values, place)
    return tuple(values)


def fix(layer: Layer, key: str, value: object, place: str) -> None:
    """Give a key one value."""
    if isinstance(value, list):
        hint = f"an axis belongs under grid, {key}: {shortened(value)}"
        raise SpecError(message(place, value, "a single value", hint))
    if isinstance(value, dict):
        raise SpecError(message(place, value, "a single value"))
    _claim(layer, key, place)
    layer.fixed[key] = value


def add_axis(layer: Layer, key: str, values: object, place: str) -> None:
    """Give a key several values."""
    if isinstance(values, dict):
        hint = f"write the key in full, {key}.{next(iter(values), 'key')}: [...]"
        raise SpecError(message(place, values, "a list of values", hint))
    if not isinstance(values, list):
        raise SpecError(message(place, values, "a list of values", f"{key}: [{values}], or put it under its section"))
    if not values:
        raise SpecError(message(place, values, "at least one value"))
    for value in values:
        if not isinstance(value, int | float | str | bool):
            raise SpecError(message(place, value, "a number, text, true or false as each value of an axis"))
    _refuse_repeats(values, place)
    _claim(layer, key, place)
    if key in ("loss.name", "model.name"):
        section = key.partition(".")[0]
        raise SpecError(message(place, values, "one a block", f"blocks: [{{{section}: {{name: {values[0]}}}}}, ...]"))
    layer.grid[key] = tuple(values)


def add_expression(layer: Layer, key: str, text: object, place: str) -> None:
    """Give a key an expression."""
    if isinstance(text, dict):
        hint = f"write the key in full, {key}.{next(iter(text), 'key')}: ..."
        raise SpecError(message(place, text, "an expression as text", hint))
    _claim(layer, key, place)
    layer.derived[key] = text


def lay_over(base: Layer, top: Layer, place: str) -> Layer:
    """The top's keys in the place of the base's, of whichever sort those are.

    A top that names another loss or model starts without the base's keys of it. place: the new layer's.
    """
    gone = {*top.fixed, *top.grid, *top.derived}
    for section in ("model", "loss"):
        name, was = top.fixed.get(f"{section}.name"), base.fixed.get(f"{section}.name")
        if name is not None and was is not None and name != was:
            gone |= {key for key in base.places if key.startswith(f"{section}.")}
    return Layer(
        place,
        {key: value for key, value in base.fixed.items() if key not in gone} | top.fixed,
        {key: axis for key, axis in base.grid.items() if key not in gone} | top.grid,
        {key: text for key, text in base.derived.items() if key not in gone} | top.derived,
        base.constraints + top.constraints,
        top.seeds if top.seeds is not None else base.seeds,
        base.places | top.places,
    )


def check(layer: Layer, own: tuple[str, ...], aliases: Mapping[str, str], source: str) -> Block:
    """A complete block. Raises SpecError for the first key, value or expression that its model and loss do not have."""
    root = f"{source}: {layer.place}." if layer.place else f"{source}: "
    fixed: dict[str, Any] = {"model.name": DEFAULT_MODEL, **layer.fixed}
    for section, kinds in NAMED.items():
        key, name = f"{section}.name", fixed.get(f"{section}.name")
        if name is None:
            raise SpecError(f"{root}{key}: missing; expected one of {', '.join(kinds)}.")
        if name not in kinds:
            law = f"one of {', '.join(kinds)}"
            raise SpecError(message(layer.places[key], name, law, suggest(str(name), kinds)))
    kinds = sections(fixed["model.name"], fixed["loss.name"])
    for key in (*fixed, *layer.grid, *layer.derived):
        _check_key(key, kinds, fixed, layer.places.get(key, root + key))
    for key, value in fixed.items():
        _check(*_owner(key, kinds), value, layer.places.get(key, root + key))
    for key, values in layer.grid.items():
        for value in values:
            _check(*_owner(key, kinds), value, layer.places[key])
    for section in ("model", "loss"):
        for name, info in kinds[section].model_fields.items():
            key = f"{section}.{name}"
            if info.is_required() and not any(key in part for part in (fixed, layer.grid, layer.derived)):
                loss = fixed[f"{section}.name"]
                raise SpecError(f"{root}{key}: missing; {section} {loss} expects a value, an axis or an expression.")
    program = derive.program(layer.derived, layer.constraints, names(kinds, aliases), layer.places)
    return Block(
        place=layer.place,
        fixed=fixed,
        grid=layer.grid,
        derived={key: str(text) for key, text in layer.derived.items()},
        constraints=tuple(str(text) for _, text in layer.constraints),
        seeds=layer.seeds if layer.seeds is not None else (kinds["train"].model_fields["seed"].default,),
        own=own,
        program=program,
        places=layer.places,
        kinds=kinds,
    )


def _check_key(key: str, kinds: Mapping[str, type[Frozen]], fixed: Mapping[str, Any], place: str) -> None:
    section, _, name = key.partition(".")
    if section == "data" and name in kinds["data"].model_fields:
        raise SpecError(f"{place}: a sweep has one data set; expected {key} under data.")
    if section in kinds and name in kinds[section].model_fields:
        return
    near = suggest(key, known_keys(fixed["model.name"], fixed["loss.name"]))
    owners = [other for other, kind in NAMED.get(section, {}).items() if name in kind.model_fields]
    if owners:
        near = f"{name} belongs to {', '.join(owners)}"
    of = f" of {section} {fixed[f'{section}.name']}" if section in NAMED else ""
    raise SpecError(f"{place}: unknown key{of}." + (f" hint: {near}" if near else ""))


def _owner(key: str, kinds: Mapping[str, type[Frozen]]) -> tuple[type[Frozen], str]:
    section, _, name = key.partition(".")
    return kinds[section], name


def _check(kind: type[Frozen], name: str, value: object, place: str) -> None:
    try:
        check_value(kind, name, value, place)
    except ConfigError as error:
        raise SpecError(str(error)) from None


def _claim(layer: Layer, key: str, place: str) -> None:
    if key == "train.seed":
        raise SpecError(f"{place}: not here; expected the list of replicates. hint: seeds: [1235, 37, 2451]")
    if key in layer.places:
        other = layer.places[key].partition(": ")[2]
        raise SpecError(f"{place}: {key} stands twice; expected it once, it is already at {other}.")
    layer.places[key] = place


def _mapping(value: object, place: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SpecError(message(place, value, "a mapping"))
    return value


def _refuse_repeats(values: list[Any], place: str) -> None:
    for i, value in enumerate(values):
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values[:i]):
            raise SpecError(f"{place}: got {value!r} twice; expected different values.")
