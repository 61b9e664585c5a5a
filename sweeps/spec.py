"""A search space as read: YAML text -> frozen `SweepSpec`. No torch, no ray, no data set needed.

Every mistake that can be seen without the data is a SpecError with file, key, value and law. docs/search_spaces.md
describes the schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from seqrec import remote, yamlfile
from seqrec.config import CUTOFFS, SELECTION_METRIC, Data, Frozen, known_keys, parse_section, suggest
from seqrec.errors import ConfigError, message
from sweeps import blocks
from sweeps.blocks import BLOCK_KEYS, Block, Layer, Value
from sweeps.derive import FUNCTIONS
from sweeps.errors import SpecError
from sweeps.names import STATISTICS
from sweeps.overrides import SWEEP_KEYS, Change, change_layers, change_tree, parse_override, tell_override

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*")

RANKING = ("ndcg", "hit_rate", "recall", "precision", "mrr", "map", "coverage", "surprisal")
OBJECTIVES: dict[str, Literal["max", "min"]] = {
    **{f"valid/{metric}_at_{k}": "max" for metric in RANKING for k in CUTOFFS},
    "memory/peak_gib": "min",
    "memory/reserved_gib": "min",
    "memory/predicted_gib": "min",
    "time/epoch_s": "min",
    "time/elapsed_s": "min",
    "best/elapsed_s": "min",
}
"""What a front may weigh, and which way is better. Nothing of test/: a front that chooses on it would be optimistic."""


class SchedulerSpec(Frozen):
    """Who may stop a trial early, by validation NDCG@10.

    fifo: nobody. asha: asynchronous successive halving. dominance: any better cell of no more memory. pareto_asha:
    successive halving that keeps the front of memory and quality. A key that the named one does not use has no effect.
    """

    name: Literal["fifo", "asha", "dominance", "pareto_asha"] = "fifo"
    grace_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs that every trial gets."""
    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """asha: one in this many trials passes a rung, and each rung is this many times longer."""
    rung_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """pareto_asha, dominance: each rung is this many times longer."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """pareto_asha: share of a half-octave of memory that may pass a rung."""
    margin: Annotated[float, Field(ge=0.0)] = 0.15
    """pareto_asha, dominance: by how much a rival of no more memory may be better at the first rung."""
    last_margin: Annotated[float, Field(ge=0.0)] = 0.03
    """pareto_asha: the same at the end; never above `margin`."""
    promote: bool = True
    """pareto_asha: pause at rungs and go on from the checkpoint later; false: only stop."""
    race: bool = True
    """pareto_asha: further seeds only for configurations that could be on the front; false: all at once."""
    shuffle_seed: Annotated[int, Field(ge=0)] | None = 0
    """Order in which cells start; null: as planned."""


class Resources(Frozen):
    """What one trial occupies."""

    cpus_per_trial: Annotated[float, Field(gt=0.0)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0.0)] | Literal["auto"] = "auto"
    """A share of a GPU, 0 for none; auto: from the predicted memory, none on a machine without a GPU."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    checkpoint_every_s: Annotated[float, Field(ge=0.0)] = 60.0
    """Seconds of training between a trial's checkpoints: what a crash costs. 0: after every epoch."""
    mps: bool | Literal["auto"] = "auto"
    """Run NVIDIA's Multi-Process Service on this machine for as long as a launch lasts; auto: where trials share a GPU
    and the service is at hand."""
    try_infeasible: bool = False
    """auto: give cells that are predicted to fit no GPU a whole one, instead of not trying them."""
    ahead: Annotated[int, Field(ge=0)] = 0
    """Trials that wait for room, for a cluster that grows with the requests that wait."""
    retime: Literal["front", "none"] = "none"
    """front: cells of the front whose times were taken while sharing are timed again at the end, alone."""


class Budget(Frozen):
    """Where a launch ends although cells remain; the next launch goes on."""

    trials: Annotated[int, Field(ge=1)] | None = None
    wall_hours: Annotated[float, Field(gt=0.0)] | None = None
    gpu_hours: Annotated[float, Field(gt=0.0)] | None = None
    """Of the trials: share of a GPU times the hours it was held."""


@dataclass(frozen=True)
class SweepSpec:
    """A search space, checked as far as that is possible without the data set."""

    source: str
    """Path of the file, as given."""
    text: str = field(repr=False)
    """The YAML as read."""
    name: str
    """Also the sweep's folder."""
    description: str
    data: Data
    fixed: dict[str, Value]
    """The base's values by dotted key."""
    blocks: tuple[Block, ...]
    """At least one."""
    seeds: tuple[int, ...]
    """The base's."""
    aliases: dict[str, str]
    """Name in expressions -> dotted key, or a name of the data set's."""
    objectives: tuple[tuple[str, Literal["max", "min"]], ...]
    scheduler: SchedulerSpec
    resources: Resources
    budget: Budget
    overrides: tuple[str, ...]
    """The `--set` texts, as given."""


def load(path: Path, overrides: Sequence[str] = (), data: str | None = None) -> SweepSpec:
    """The search space in a file, with `--set` texts and `--data` applied. Raises SpecError for the first mistake."""
    source = str(path)
    changes: list[Change] = []
    try:
        tree = yamlfile.load(path)
        text = path.read_text(encoding="utf-8")
        _refuse_unknown(tree, (*SWEEP_KEYS, *BLOCK_KEYS), f"{source}: ")
        _refuse_secrets((source, text), *(("--set", override) for override in overrides))
        changes = [parse_override(override) for override in overrides]
        change_tree(tree, changes, data)
        return _read(tree, source, text, changes, tuple(overrides), path.stem)
    except (ConfigError, SpecError) as error:
        raise SpecError(tell_override(str(error), source, changes)) from None


def _refuse_secrets(*texts: tuple[str, str]) -> None:
    """Raises SpecError for an address with a secret in what every ledger, report and MLflow show."""
    for place, text in texts:
        if found := remote.secrets_in(text):
            law = "an address without user, password or signature, for the ledger keeps this text"
            raise SpecError(message(place, found[0], law, "give the address by --data, or credentials otherwise"))


def _read(
    tree: Mapping[str, Any],
    source: str,
    text: str,
    changes: Sequence[Change],
    overrides: tuple[str, ...],
    stem: str,
) -> SweepSpec:
    aliases = _aliases(tree.get("aliases"), source)
    base = blocks.read(tree, source)
    objectives = _objectives(tree.get("objectives"), source)
    return SweepSpec(
        source=source,
        text=text,
        name=_name(tree.get("name", stem), source),
        description=_text(tree.get("description", ""), f"{source}: description"),
        data=_section(Data, tree, "data", source),
        fixed=dict(base.fixed),
        blocks=_blocks(tree, base, changes, aliases, source),
        seeds=base.seeds or (1235,),
        aliases=aliases,
        objectives=objectives,
        scheduler=_scheduler(tree, objectives, source),
        resources=_section(Resources, tree, "resources", source),
        budget=_section(Budget, tree, "budget", source),
        overrides=overrides,
    )


def _blocks(
    tree: Mapping[str, Any],
    base: Layer,
    changes: Sequence[Change],
    aliases: Mapping[str, str],
    source: str,
) -> tuple[Block, ...]:
    """Every block complete: the base, the block's own keys, then the overrides."""
    parts = tree.get("blocks")
    layers: list[tuple[Layer, tuple[str, ...]]] = [(base, ())]
    if parts is not None:
        if not isinstance(parts, list) or not parts:
            raise SpecError(message(f"{source}: blocks", parts, "a list of at least one block"))
        layers = []
        for i, part in enumerate(parts):
            place = f"blocks[{i}]"
            if not isinstance(part, dict):
                raise SpecError(message(f"{source}: {place}", part, "a mapping"))
            _refuse_unknown(part, BLOCK_KEYS, f"{source}: {place}.")
            own = blocks.read(part, source, place)
            layers.append((blocks.lay_over(base, own, place), tuple(own.fixed)))
    changed = change_layers([layer for layer, _ in layers], changes)
    return tuple(blocks.check(layer, own, aliases, source) for layer, (_, own) in zip(changed, layers, strict=True))


def _refuse_unknown(tree: Mapping[str, Any], known: Sequence[str], root: str) -> None:
    for key in tree:
        if key in known:
            continue
        if key in SWEEP_KEYS:
            raise SpecError(f"{root}{key}: not in a block; expected it once, for the whole sweep.")
        hint = suggest(key, {*known, *known_keys()})
        if "." in key:
            section, _, name = key.partition(".")
            hint = f"nest it, {section}: {{{name}: ...}}"
        raise SpecError(f"{root}{key}: unknown key." + (f" hint: {hint}" if hint else ""))


def _name(value: object, source: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        law = "at most 100 of a-z, 0-9, _ . - with a letter or digit first (it names a folder)"
        raise SpecError(message(f"{source}: name", value, law))
    return value


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise SpecError(message(place, value, "text"))
    return " ".join(value.split())


def _aliases(value: object, source: str) -> dict[str, str]:
    place = f"{source}: aliases"
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SpecError(message(place, value, "a mapping of a name to a key"))
    keys = known_keys()
    targets = {*keys, *STATISTICS}
    taken = {*targets, *FUNCTIONS, *(key.rpartition(".")[2] for key in keys)}
    for alias, key in value.items():
        if not ALIAS.fullmatch(alias):
            raise SpecError(message(place, alias, "names joined by dots"))
        if alias in taken:
            raise SpecError(message(f"{place}.{alias}", key, "a name that is not taken"))
        if not isinstance(key, str) or key not in targets:
            law = "a key of a run or a number of the data set"
            raise SpecError(message(f"{place}.{alias}", key, law, suggest(str(key), targets)))
    return dict(value)


def _objectives(value: object, source: str) -> tuple[tuple[str, Literal["max", "min"]], ...]:
    place = f"{source}: objectives"
    if value is None:
        value = {"valid/ndcg_at_10": "max", "memory/peak_gib": "min"}
    if not isinstance(value, dict) or not value:
        raise SpecError(message(place, value, "a mapping of a metric to max or min"))
    for metric, direction in value.items():
        if metric not in OBJECTIVES:
            law = "a metric of validation, memory or time"
            hint = suggest(metric.replace("@", "_at_"), OBJECTIVES)
            raise SpecError(f"{place}.{metric}: unknown metric; expected {law}." + (f" hint: {hint}" if hint else ""))
        if direction != OBJECTIVES[metric]:
            raise SpecError(message(f"{place}.{metric}", direction, f"{OBJECTIVES[metric]}, the better end of it"))
    return tuple(value.items())


def _scheduler(
    tree: Mapping[str, Any], objectives: Sequence[tuple[str, Literal["max", "min"]]], source: str
) -> SchedulerSpec:
    """Without a name: pareto_asha where the front is one of memory and of the metric that it looks at, else fifo."""
    value = tree.get("scheduler")
    if value is None or (isinstance(value, dict) and "name" not in value):
        other = [metric for metric, _ in objectives if metric != SELECTION_METRIC]
        keeps_the_front = len(objectives) == 2 and len(other) == 1 and other[0].startswith("memory/")
        value = {"name": "pareto_asha" if keeps_the_front else "fifo", **(value or {})}
    return _section(SchedulerSpec, {"scheduler": value}, "scheduler", source)


Kind = TypeVar("Kind", bound=Frozen)


def _section(kind: type[Kind], tree: Mapping[str, Any], name: str, source: str) -> Kind:
    value = tree.get(name)
    return parse_section(kind, {} if value is None else value, f"{source}: {name}")
