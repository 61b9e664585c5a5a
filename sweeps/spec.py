"""A search space as read: YAML text -> frozen `SweepSpec`. No torch, no ray, no data set needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from seqrec.config import Data, Frozen
from sweeps.cells import Scalar

Value = Scalar | None


class SchedulerSpec(Frozen):
    """Who may stop a trial early. fifo: nobody. asha: asynchronous successive halving on validation NDCG@10."""

    name: Literal["fifo", "asha"] = "fifo"
    grace_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs that every trial gets."""
    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """One in this many trials passes a rung, and each rung is this many times longer."""
    shuffle_seed: Annotated[int, Field(ge=0)] | None = 0
    """Order in which cells start; null: as planned."""


class Resources(Frozen):
    """What one trial occupies."""

    cpus_per_trial: Annotated[float, Field(gt=0.0)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0.0)] | Literal["auto"] = 0.0
    """A share of a GPU; auto: from the predicted memory."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None


class Budget(Frozen):
    """Where a launch ends although cells remain; the next launch goes on."""

    trials: Annotated[int, Field(ge=1)] | None = None
    wall_hours: Annotated[float, Field(gt=0.0)] | None = None


@dataclass(frozen=True)
class Block:
    """One part of a sweep, complete: the base's keys with the block's own laid over them."""

    place: str
    """Where it stands in the file, for messages: `` for the base, `blocks[2]`."""
    fixed: dict[str, Value]
    """By dotted key; `data.*` and `loss.name` among them, never `train.seed`."""
    grid: dict[str, tuple[Scalar, ...]]
    """Axes by dotted key, in the order of declaration."""
    derived: dict[str, str]
    """Expressions by dotted key."""
    constraints: tuple[str, ...]
    seeds: tuple[int, ...]
    own: tuple[str, ...] = ()
    """Keys that this block, not the base, fixes: they tell blocks apart."""


@dataclass(frozen=True)
class SweepSpec:
    """A search space, checked as far as that is possible without the data set."""

    source: str
    """Path of the file, as given."""
    text: str
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
    aliases: dict[str, str]
    """Name in expressions -> dotted key."""
    objectives: tuple[tuple[str, Literal["max", "min"]], ...]
    scheduler: SchedulerSpec = SchedulerSpec()
    resources: Resources = Resources()
    budget: Budget = Budget()
    overrides: tuple[str, ...] = ()
    """The `--set` texts, as given."""


def load(path: Path, overrides: Sequence[str] = (), data: str | None = None) -> SweepSpec:
    """The search space in a file, with `--set` texts and `--data` applied. Raises SpecError for the first mistake."""
    raise NotImplementedError
