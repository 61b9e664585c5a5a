"""The ledger: every event of every cell of a sweep, one JSON object a line, append-only, one writer.

It is the source of truth: what has run, what the stopping rule knew, what MLflow is told and what the report shows all
come from this file. The events and their fields: docs/architecture.md.

A crash can tear only the last line: readers ignore a line without its end, the next writer cuts it off. Anything else
that cannot be read is damage, and raises `LedgerError` with the line's number.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from seqrec.config import SELECTION_METRIC
from seqrec.reports import Metrics
from sweeps import lock
from sweeps.errors import LedgerError
from sweeps.outcomes import Outcome

Event = dict[str, Any]
"""One line of the ledger: `type`, `sequence`, `time_ms` and the fields of its type."""

FILE_NAME = "ledger.jsonl"
LOCK_NAME = "ledger.lock"
GROUP_COMMIT_S = 0.05
"""How long an event that may wait (all but ends) waits for company before one fsync takes them all to the disk."""


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Events from byte `offset` (0, or one handed out before), each with the offset of the next one.

    Stops before a line that has no end yet: the writer may be at it, or a crash tore it. Raises LedgerError for a whole
    line that is no event.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield _parse(line, path, offset), offset + len(line)
            offset += len(line)


def _parse(line: bytes, path: Path, offset: int) -> Event:
    try:
        event = json.loads(line)
        if isinstance(event, dict) and isinstance(event.get("type"), str) and isinstance(event.get("sequence"), int):
            return event
    except ValueError:
        pass
    with path.open("rb") as file:
        number = file.read(offset).count(b"\n") + 1
    raise LedgerError(f"{path} line {number}: got {line[:60]!r}; expected one JSON object with type and sequence.")


# ------------------------------------------------------------------------------------------------------------- folding


@dataclass
class CellState:
    """What the ledger says of one cell."""

    cell_key: str
    configuration_key: str
    label: str
    attempt: int = 0
    """Attempts started so far."""
    gpu_share: float | None = None
    """Part of a GPU that the last attempt was given; 0 on CPU, None in ledgers that did not say."""
    alone: bool = False
    """It ran out of memory on a part of a GPU: from now on it gets a whole one."""
    running: bool = False
    """The last attempt has no end."""
    epochs: int = 0
    """Highest epoch on record; epochs come in order, 1 first."""
    outcome: Outcome | None = None
    """None until a terminal end."""
    reason: str = ""
    best_epoch: int = 0
    """Epoch with the best `SELECTION_METRIC`; 0 before the first validation."""
    best_metrics: Metrics = field(default_factory=dict)
    """All metrics of that epoch."""
    last_metrics: Metrics = field(default_factory=dict)
    """All metrics of the last epoch."""
    memory: Metrics = field(default_factory=dict)
    """Largest of every memory/* so far."""
    epoch_s: list[float] = field(default_factory=list)
    """Training seconds of every epoch."""
    end_metrics: Metrics = field(default_factory=dict)
    timed: bool = False
    """A second timing is on record."""
    source: dict[str, Any] | None = None
    """The sweep that trained it, if that was another one."""

    @property
    def best(self) -> float | None:
        """Best `SELECTION_METRIC` so far."""
        return self.best_metrics.get(SELECTION_METRIC)

    def summary(self) -> Metrics:
        """The epochs as an `end` tells them, for a cell whose training did not get to sum itself up."""
        metrics = {f"best/{key.removeprefix('valid/')}": value for key, value in _group(self.best_metrics, "valid/")}
        if self.best_epoch:
            metrics["best/epoch"] = float(self.best_epoch)
        if "time/elapsed_s" in self.best_metrics:
            metrics["best/elapsed_s"] = self.best_metrics["time/elapsed_s"]
        if self.epoch_s:
            metrics["time/epoch_s"] = statistics.median(self.epoch_s)
        if "time/elapsed_s" in self.last_metrics:
            metrics["time/elapsed_s"] = self.last_metrics["time/elapsed_s"]
        return {**metrics, **self.memory}


@dataclass
class State:
    """What the ledger says of the sweep. `apply` is the only place where events become state."""

    sweep_id: str = ""
    name: str = ""
    launches: int = 0
    plan: Event | None = None
    """The last launch's."""
    cells: dict[str, CellState] = field(default_factory=dict)

    def accepts(self, event: Mapping[str, Any]) -> bool:
        """False for what must stand at most once and does already: a cell, its epoch, its terminal end, a second
        timing; and for a retry of what did not fail, a timing of what is not done."""
        cell = self.cells.get(event.get("cell_key", ""))
        match event["type"]:
            case "cell":
                return cell is None
            case "epoch":
                return cell is not None and cell.outcome is None and event["epoch"] > cell.epochs
            case "start" | "end":
                return cell is not None and cell.outcome is None
            case "reuse":
                return cell is not None and cell.outcome is None and cell.source != event["source"]
            case "retry":
                return cell is not None and cell.outcome is not None and cell.outcome.is_failure
            case "timing":
                return cell is not None and cell.outcome is Outcome.DONE and not cell.timed
        return True

    def apply(self, event: Event) -> None:
        if not self.accepts(event):
            return
        match event["type"]:
            case "sweep":
                self.sweep_id, self.name = event["sweep_id"], event["name"]
            case "plan":
                self.launches, self.plan = event["launch"], event
                for cell in self.cells.values():
                    cell.running = False
            case "cell":
                key = event["cell_key"]
                self.cells[key] = CellState(key, event["configuration_key"], event["label"])
            case "start":
                cell = self.cells[event["cell_key"]]
                cell.attempt, cell.running = event["attempt"], True
                cell.gpu_share = event.get("gpu_share")
            case "epoch":
                self._apply_epoch(self.cells[event["cell_key"]], event)
            case "reuse":
                self.cells[event["cell_key"]].source = event["source"]
            case "timing":
                self.cells[event["cell_key"]].timed = True
            case "retry":
                cell = self.cells[event["cell_key"]]
                cell.outcome, cell.reason, cell.end_metrics = None, "", {}
            case "end":
                cell = self.cells[event["cell_key"]]
                outcome = Outcome(event["outcome"])
                cell.running, cell.reason = False, event["reason"]
                cell.alone = cell.alone or event.get("alone", False)
                if outcome.is_terminal:
                    cell.outcome, cell.end_metrics = outcome, event["metrics"]

    @staticmethod
    def _apply_epoch(cell: CellState, event: Event) -> None:
        metrics: Metrics = event["metrics"]
        cell.epochs, cell.last_metrics = event["epoch"], metrics
        for key, value in _group(metrics, "memory/"):
            cell.memory[key] = max(value, cell.memory.get(key, value))
        if "time/epoch_s" in metrics:
            cell.epoch_s.append(metrics["time/epoch_s"])
        value = metrics.get(SELECTION_METRIC, -math.inf)
        if value > (-math.inf if cell.best is None else cell.best):
            cell.best_epoch, cell.best_metrics = event["epoch"], metrics


def _group(metrics: Metrics, prefix: str) -> list[tuple[str, float]]:
    return [(key, value) for key, value in metrics.items() if key.startswith(prefix)]


def fold(events: Iterable[Event]) -> State:
    """The state after these events."""
    state = State()
    for event in events:
        state.apply(event)
    return state


# ------------------------------------------------------------------------------------------------------------- writing


class Ledger:
    """The one writer of a sweep's directory, and the folded state of what stands in the file.

    Opening takes the lock (LedgerBusy names its holder), reads the whole file and cuts off a torn last line; `on_event`
    sees the events that stand there.
    """

    def __init__(self, directory: Path, on_event: Callable[[Event], None] | None = None) -> None:
        self.path = directory / FILE_NAME
        self.state = State()
        self._lock = lock.take(directory / LOCK_NAME)
        try:
            self._size = self._sequence = 0
            for event, next_offset in read(self.path):
                if event["sequence"] != self._sequence:
                    raise LedgerError(
                        f"{self.path} line {self._sequence + 1}: got sequence {event['sequence']}; "
                        f"expected {self._sequence}."
                    )
                self._size, self._sequence = next_offset, self._sequence + 1
                self.state.apply(event)
                if on_event:
                    on_event(event)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except BaseException:
            os.close(self._lock)
            raise
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, self._size, os.SEEK_SET)
        self._dirty = False
        self._synced_at = 0.0
        self._failure: LedgerError | None = None

    def append(self, type: str, *, sync: bool = False, **fields: Any) -> Event | None:
        """Write one event; None when the state does not accept it (a replay).

        sync: on disk when this returns; otherwise within `GROUP_COMMIT_S` of the next `append` or `flush`. Raises
        LedgerError when the file cannot be written; it then ends with the last whole event, and stays closed to more.
        """
        if self._failure:
            raise self._failure
        event = {"type": type, "sequence": self._sequence, "time_ms": time.time_ns() // 1_000_000, **fields}
        if "metrics" in event:
            event["metrics"] = {key: value for key, value in event["metrics"].items() if math.isfinite(value)}
        if not self.state.accepts(event):
            return None
        line = json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._dirty = True
            self._sync(force=sync)
        except OSError as error:
            raise self._fail(error) from error
        self._size += len(line)
        self._sequence += 1
        self.state.apply(event)
        return event

    def flush(self) -> None:
        """Bring what waits to the disk, if it has waited for `GROUP_COMMIT_S`. Raises LedgerError as `append` does."""
        if self._dirty and not self._failure:
            try:
                self._sync(force=False)
            except OSError as error:
                raise self._fail(error) from error

    def _sync(self, *, force: bool) -> None:
        if force or time.monotonic() - self._synced_at >= GROUP_COMMIT_S:
            os.fsync(self._file)
            self._dirty, self._synced_at = False, time.monotonic()

    def _fail(self, error: OSError) -> LedgerError:
        os.ftruncate(self._file, self._size)
        self._failure = LedgerError(
            f"{self.path}: cannot be written ({error.strerror}); it is whole up to event {self._sequence - 1}. "
            "hint: make room and run the same command again, it goes on from there."
        )
        return self._failure

    def close(self) -> None:
        """Flush, close, give the lock back."""
        try:
            if self._dirty and not self._failure:
                self._sync(force=True)
        except OSError as error:
            raise self._fail(error) from error
        finally:
            os.close(self._file)
            os.close(self._lock)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
