"""Finished cells of other sweeps: what a sweep does not have to train again. No torch, no ray.

A cell's key is a hash of its configuration, its seed, the data's content and the version of the numerics, so the same
key in another ledger is the same training. Taken over are cells that are done, and those that the same scheduler
stopped; failures are tried again. What a ledger holds is judged as a whole: one that is damaged is named and left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seqrec.errors import UserError, message
from seqrec.reports import Metrics
from sweeps.errors import LedgerError
from sweeps.ledger import FILE_NAME, CellState, Event, State, read
from sweeps.outcomes import Outcome
from sweeps.spec import SchedulerSpec
from sweeps.timing import Timings

MEASURED = "memory/peak_gib"
"""Measured on a GPU and nowhere else."""
USUAL = SchedulerSpec().model_dump(mode="json")
"""A key that a ledger is too old to have did then what its default does now."""
NAMED = ("git_commit", "host", "gpu")
"""Of the environment in which a cell was trained: what its new ledger says of it."""


@dataclass(frozen=True)
class Finished:
    """One cell of another ledger."""

    outcome: Outcome
    """Done or stopped."""
    reason: str
    epochs: tuple[Metrics, ...]
    """Of epoch 1, 2, ..."""
    metrics: Metrics
    """Of its end."""
    source: dict[str, Any]
    """Who trained it: ledger (path), sweep_id, name, ended_ms (Unix), scheduler if that stopped it, `timing` (how its
    times were taken, as `sweeps.timing` tells), and `NAMED`."""


@dataclass(frozen=True)
class Found:
    """What other ledgers hold of a plan."""

    cells: Mapping[str, Finished]
    """By cell_key."""
    notes: tuple[str, ...]
    """For people: ledgers that were left out, and why."""


NOTHING = Found({}, ())


def folders(storage: Path, own: Path, named: Sequence[Path] = ()) -> list[Path]:
    """Folders of sweeps to look into: those named (a sweep's, or one that holds sweeps), then those of the storage by
    name; each once, without the sweep's own. Raises UserError for a named one that holds no ledger."""
    found: list[Path] = []
    for folder in named:
        inside = [folder] if (folder / FILE_NAME).is_file() else _sweeps_in(folder)
        if not inside:
            law = f"the folder of a sweep, or of sweeps (with {FILE_NAME} inside)"
            raise UserError(message("--reuse", str(folder), law))
        found += inside
    found += _sweeps_in(storage)
    unique = {folder.resolve(): folder for folder in reversed(found)}
    unique.pop(own.resolve(), None)
    return list(reversed(unique.values()))


def _sweeps_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}") if path.is_file())


def find(wanted: Collection[str], places: Iterable[Path], *, scheduler: Mapping[str, Any], on_gpu: bool) -> Found:
    """What the ledgers in `places` hold of the cells with these keys.

    scheduler: of the sweep that asks, as in a plan event. on_gpu: whether it trains on GPUs; a GPU and a CPU give
    other numbers where the configuration says `auto`, so that cells of the other kind are left out. Of a cell in
    several ledgers, done comes before stopped, then the first ledger.
    """
    cells: dict[str, Finished] = {}
    notes: list[str] = []
    for place in places:
        path = place / FILE_NAME
        try:
            there = _finished(path, wanted)
        except (LedgerError, OSError) as error:
            told = str(error) if isinstance(error, LedgerError) else f"{path}: cannot be read ({error.strerror})."
            notes.append(f"{told} Its cells are not taken over.")
            continue
        strangers = 0
        for key, cell in there.items():
            if cell.outcome is Outcome.STOPPED and {**USUAL, **(cell.source["scheduler"] or {})} != scheduler:
                continue
            if (MEASURED in cell.metrics or any(MEASURED in epoch for epoch in cell.epochs)) != on_gpu:
                strangers += 1
            elif key not in cells or (cells[key].outcome, cell.outcome) == (Outcome.STOPPED, Outcome.DONE):
                cells[key] = cell
        if strangers:
            kind, asked = ("a CPU", "GPUs") if on_gpu else ("a GPU", "CPUs")
            notes.append(
                f"{path}: {strangers:,} cells were trained on {kind}; this sweep is for {asked}: not taken over."
            )
    return Found(cells, tuple(notes))


def is_free(cell: CellState | None) -> bool:
    """Whether a cell can be taken over, as its own ledger has it: no end, and no epoch that was trained here."""
    return cell is None or (cell.outcome is None and (cell.epochs == 0 or cell.source is not None))


def _finished(path: Path, wanted: Collection[str]) -> dict[str, Finished]:
    """Done and stopped cells of one ledger. Raises LedgerError if it is damaged; a line that is still being written is
    none."""
    state, timings = State(), Timings()
    epochs: dict[str, list[Metrics]] = {}
    found: dict[str, Finished] = {}
    for sequence, (event, _) in enumerate(read(path)):
        if event["sequence"] != sequence:
            raise LedgerError(f"{path} line {sequence + 1}: got sequence {event['sequence']}; expected {sequence}.")
        try:
            accepted = state.accepts(event)
            state.apply(event)
            timings.add(event)
            key = event.get("cell_key", "")
            if accepted and key in wanted:
                _take(event, path, state, epochs.setdefault(key, []), found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise LedgerError(f"{path} line {sequence + 1}: got {what}; expected a whole {event['type']}.") from None
    return {key: replace(cell, source={**cell.source, "timing": timings.of(key)}) for key, cell in found.items()}


def _take(event: Event, path: Path, state: State, epochs: list[Metrics], found: dict[str, Finished]) -> None:
    """Follow one event of a wanted cell. Raises ValueError for a gap in its epochs, which no whole ledger has."""
    if event["type"] == "epoch":
        epochs.append(dict(event["metrics"]))
        if event["epoch"] != len(epochs):
            raise ValueError(f"epoch {event['epoch']} after {len(epochs) - 1}")
    elif event["type"] == "timing" and event["cell_key"] in found:
        cell = found[event["cell_key"]]
        found[event["cell_key"]] = replace(cell, metrics={**cell.metrics, **event["metrics"]})
    elif event["type"] == "end":
        outcome = Outcome(event["outcome"])
        if outcome not in (Outcome.DONE, Outcome.STOPPED):
            return
        if event["epochs"] != len(epochs):
            raise ValueError(f"an end after {event['epochs']} epochs, and {len(epochs)} on record")
        plan = state.plan or {}
        source = state.cells[event["cell_key"]].source or {
            "ledger": str(path.absolute()),
            "sweep_id": state.sweep_id,
            "name": state.name,
            "ended_ms": event["time_ms"],
            **{key: value for key, value in plan.get("environment", {}).items() if key in NAMED},
            **({"scheduler": plan.get("scheduler")} if outcome is Outcome.STOPPED else {}),
        }
        found[event["cell_key"]] = Finished(outcome, event["reason"], tuple(epochs), dict(event["metrics"]), source)
