"""One launch of a sweep as bookkeeping: what trials report goes in, events go to the ledger, decisions come out.

No Ray, no torch: execution feeds it from Ray's callbacks, tests feed it by hand. Messages of a trial are mappings with
a `kind`: `start` (node, pid, from_epoch, gpu_share), `epoch` (epoch, metrics) and `end` (outcome, reason, epochs,
metrics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from seqrec.config import SELECTION_METRIC
from seqrec.reports import Metrics
from sweeps import facts, outcomes, snapshot
from sweeps.budget import Budget
from sweeps.cards import GIB
from sweeps.cells import Cell
from sweeps.deaths import Deaths
from sweeps.errors import LedgerError
from sweeps.ledger import CellState, Event, Ledger
from sweeps.outcomes import Outcome
from sweeps.reuse import Finished
from sweeps.snapshot import Snapshot
from sweeps.verdicts import GO_ON, Rule, Verdict

CloseReason = Literal["finished", "interrupted", "budget"]
BEST_METRIC = f"best/{SELECTION_METRIC.removeprefix('valid/')}"
AGAIN = "hint: make room and run the same command again, it goes on from there."


class Launch:
    """Opens the ledger, brings rule and state to where they were, takes messages until it is closed.

    on_end: called with the key of a cell when its end is on disk. budget: once it is spent no cell starts, and those
    that run end with their next epoch.
    """

    def __init__(
        self,
        directory: Path,
        cells: Iterable[Cell],
        rule: Rule,
        *,
        budget: Budget | None = None,
        on_end: Callable[[str], None] | None = None,
    ) -> None:
        self.cells = {cell.cell_key: cell for cell in cells}
        self.rule = rule
        self._verdicts: dict[str, Verdict] = {}
        self.paused: set[str] = set()
        """Cells that this launch put off; they have no end, and what they still say is not heard."""
        self._on_end = on_end
        self.budget = budget or Budget()
        self.deaths = Deaths()
        self._ended_here = 0
        self._is_open = False
        self.allowed = 0
        """Cells that this launch may run."""
        self.stopping: Literal["", "interrupted", "budget", "halted"] = ""
        self.trouble = ""
        """Why the launch was halted."""
        self.spent = ""
        """Which limit ended the launch, for people."""
        self.failure: LedgerError | None = None
        self.ledger = Ledger(directory, on_event=self._relive)

    def _relive(self, event: Event) -> None:
        """Tell the rule what it was told when the event happened. Ledgers hold no event that `State` refuses."""
        cell = self.cells.get(event.get("cell_key", ""))
        if cell is None:
            return
        match event["type"]:
            case "start":
                self.rule.started(cell)
            case "epoch":
                self._judge(cell, event)
            case "end":
                self._conclude(cell, event)
            case "retry":
                self.rule.reopened(cell)

    def _conclude(self, cell: Cell, event: Event) -> None:
        outcome = Outcome(event["outcome"])
        if outcome.is_terminal:
            self.rule.ended(cell, event["metrics"].get(BEST_METRIC) if outcome is Outcome.DONE else None)

    def _judge(self, cell: Cell, event: Event) -> Verdict:
        verdict = self.rule.record(cell, event["epoch"], event["metrics"].get(SELECTION_METRIC))
        self._verdicts[cell.cell_key] = verdict
        return verdict

    def remaining(self) -> list[Cell]:
        """Planned cells without an end, as planned."""
        return [cell for cell in self.cells.values() if self.outcome(cell.cell_key) is None]

    def outcome(self, cell_key: str) -> Outcome | None:
        """How a planned cell ended; None: not yet."""
        state = self.ledger.state.cells.get(cell_key)
        return state.outcome if state else None

    def open(self, name: str, sweep_id: str, **plan: Any) -> None:
        """Write the sweep's first line if it is new, this launch's plan, and the ends that a crash kept from being
        written: of cells trained here whose last epoch the rule had judged. Raises LedgerError."""
        state = self.ledger.state
        self._is_open = True
        if not state.sweep_id:
            self.ledger.append("sweep", sweep_id=sweep_id, name=name)
        self.ledger.append("plan", sync=True, launch=state.launches + 1, **plan)
        for cell in self.remaining():
            verdict = self._verdicts.get(cell.cell_key, GO_ON)
            known = self.ledger.state.cells.get(cell.cell_key)
            if verdict.stop and known and known.source is None:
                self.end(cell.cell_key, Outcome.STOPPED, verdict.reason)

    def adopt(self, cell_key: str, finished: Finished) -> None:
        """Write a cell that another sweep trained: where it comes from, its epochs, its end. A crash in between is
        mended by adopting it again. Raises LedgerError."""
        cell = self.cells[cell_key]
        self._introduce(cell)
        self.ledger.append("reuse", cell_key=cell_key, source=finished.source)
        attempt = max(self._state(cell_key).attempt, 1)
        for epoch, metrics in enumerate(finished.epochs, start=1):
            event = self.ledger.append("epoch", cell_key=cell_key, attempt=attempt, epoch=epoch, metrics=metrics)
            if event:
                self._judge(cell, event)
        # The prediction is this plan's, for one front compares it with the others of this plan.
        metrics = {**finished.metrics, "memory/predicted_gib": cell.predicted_bytes / GIB}
        event = self._write_end(cell, finished.outcome, finished.reason, len(finished.epochs), metrics, sync=False)
        if event:
            self._conclude(cell, event)

    def retry(self, cells: Iterable[Cell]) -> None:
        """Open again what failed, so that it can be tried once more; nothing for cells that did not fail. Raises
        LedgerError."""
        for cell in cells:
            if (outcome := self.outcome(cell.cell_key)) is not None and outcome.is_failure:
                self.ledger.append("retry", cell_key=cell.cell_key, outcome=outcome.value)
                self.rule.reopened(cell)

    def eligible(self, todo: Iterable[Cell]) -> list[Cell]:
        """Those of these cells without an end that may run now, best first. None of them may be running."""
        return self.rule.eligible([cell for cell in todo if self.outcome(cell.cell_key) is None])

    def doomed(self, todo: Iterable[Cell], *, last: bool = False) -> list[tuple[Cell, str]]:
        """Those of these cells that wait and will never run, with the reason. last: nothing is eligible any more."""
        return self.rule.dismissed([cell for cell in todo if self.outcome(cell.cell_key) is None], last=last)

    def dismiss(self, todo: Iterable[Cell], *, last: bool = False) -> None:
        """End the doomed among these as stopped. Raises LedgerError."""
        for cell, reason in self.doomed(todo, last=last):
            self.end(cell.cell_key, Outcome.STOPPED, reason)

    # ------------------------------------------------------------------------------------------------- from trials

    def message(self, cell_key: str, message: Mapping[str, Any]) -> bool:
        """Take one message of a trial; True: the trial shall stop. Never raises for a ledger that cannot be written:
        `failure` holds the error, and `should_stop` says so."""
        if self.stopping and message["kind"] == "start":
            return True
        try:
            stop = self._take(self.cells[cell_key], message) or bool(self.stopping)
        except LedgerError as error:
            self.fail(error)
            stop = True
        if stop:
            self.budget.release(cell_key)
        return stop

    def _take(self, cell: Cell, message: Mapping[str, Any]) -> bool:
        key = cell.cell_key
        match message["kind"]:
            case "start":
                self._introduce(cell)
                self.budget.start(key)
                self.paused.discard(key)
                started = {name: message[name] for name in ("node", "pid", "from_epoch", "gpu_share")}
                self.ledger.append("start", cell_key=key, attempt=self._state(key).attempt + 1, **started)
                if self.outcome(key) is None:
                    self.rule.started(cell)
                return self.outcome(key) is not None
            case _ if key in self.paused:
                return True
            case "epoch":
                epoch, metrics = message["epoch"], message["metrics"]
                attempt = self._state(key).attempt
                event = self.ledger.append("epoch", cell_key=key, attempt=attempt, epoch=epoch, metrics=metrics)
                verdict = self._judge(cell, event) if event else GO_ON
                if math.isnan(metrics.get(SELECTION_METRIC, 0.0)):
                    self.end(key, Outcome.DIVERGED, f"{SELECTION_METRIC} is not a number at epoch {epoch}")
                elif verdict.stop:
                    self.end(key, Outcome.STOPPED, verdict.reason)
                elif verdict.pause:
                    self.end(key, Outcome.INTERRUPTED, verdict.reason)
                    self.paused.add(key)
                return self.outcome(key) is not None or key in self.paused
            case "end":
                outcome = Outcome(message["outcome"])
                self.end(key, outcome, message["reason"], message["epochs"], message["metrics"])
                if not outcome.is_terminal:
                    self.halt(f"{cell.label}: {message['reason'].splitlines()[-1]}. {AGAIN}")
                return True
        raise ValueError(f"kind: got {message['kind']!r}; expected start, epoch or end.")

    def lost(self, cell_key: str, reason: str, *, outcome: Outcome) -> None:
        """A trial's process died or its last attempt failed; outcome `interrupted`: it will be tried again."""
        try:
            self.end(cell_key, outcome, reason)
        except LedgerError as error:
            self.fail(error)

    def end(
        self,
        cell_key: str,
        outcome: Outcome,
        reason: str = "",
        epochs: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Write the end of an attempt; what the training did not say of itself is taken from its epochs on record. Out
        of memory on a part of a GPU is no end yet: the cell is interrupted, to be tried once more alone."""
        cell = self.cells[cell_key]
        self.budget.release(cell_key)
        self._introduce(cell)
        state = self._state(cell_key)
        epochs = state.epochs if epochs is None else epochs
        share = self.budget.shares.get(cell_key) or state.gpu_share or 0.0
        alone = outcome is Outcome.OOM and 0 < share < 1
        if alone:
            outcome, reason = Outcome.INTERRUPTED, outcomes.shared_oom(share, reason)
        more = {"alone": True} if alone else {}
        event = self._write_end(cell, outcome, reason, epochs, metrics or {}, sync=True, **more)
        if event and outcome.is_terminal:
            self._conclude(cell, event)
            self._ended_here += 1
            if self._on_end:
                self._on_end(cell_key)

    def _write_end(
        self, cell: Cell, outcome: Outcome, reason: str, epochs: int, metrics: Metrics, *, sync: bool, **more: Any
    ) -> Event | None:
        state = self._state(cell.cell_key)
        predicted = {"memory/predicted_gib": cell.predicted_bytes / GIB}
        return self.ledger.append(
            "end",
            sync=sync,
            cell_key=cell.cell_key,
            attempt=max(state.attempt, 1),
            outcome=outcome.value,
            reason=reason,
            epochs=epochs,
            metrics={**predicted, **state.summary(), **metrics},
            **more,
        )

    def _introduce(self, cell: Cell) -> None:
        if cell.cell_key not in self.ledger.state.cells:
            self.ledger.append("cell", **facts.cell_event(cell))

    def _state(self, cell_key: str) -> CellState:
        return self.ledger.state.cells[cell_key]

    # ------------------------------------------------------------------------------------------------- of the launch

    def interrupt(self) -> None:
        """Ask the launch to end at once, even if it is about to end in peace; safe in a signal handler."""
        if self.stopping in ("", "budget"):
            self.stopping = "interrupted"

    def halt(self, reason: str) -> None:
        """End the launch for a reason that would fail every other cell too."""
        self.trouble, self.stopping = reason, "halted"

    def should_stop(self) -> bool:
        """Whether to end now. Polled by execution several times a second; brings waiting events to the disk. Over its
        budget the launch first waits for the trials that run, each of which ends with its next epoch."""
        try:
            self.ledger.flush()
        except LedgerError as error:
            self.fail(error)
        if not self.stopping and (spent := self.budget.spent()):
            self.spent, self.stopping = spent, "budget"
        return self.budget.is_idle if self.stopping == "budget" else bool(self.stopping)

    def fail(self, error: LedgerError) -> None:
        """End the launch because its ledger cannot be written; `failure` holds the error from now on."""
        self.failure = error
        self.halt(str(error))

    def close(self) -> CloseReason:
        """Write the ends of attempts that are cut off and the launch's own (nothing, if it was never opened); give the
        ledger back. Raises LedgerError if the ledger could not be written, now or before."""
        try:
            if self.failure:
                raise self.failure
            if not self._is_open:
                return "finished"
            why = f"the launch had spent its {self.spent}" if self.spent else "the launch ended first"
            for key, state in list(self.ledger.state.cells.items()):
                if state.running and state.outcome is None and key in self.cells:
                    self.end(key, Outcome.INTERRUPTED, why)
            remaining = len(self.remaining())
            cut_off = self.stopping in ("interrupted", "halted")
            reason: CloseReason = "interrupted" if cut_off else "budget" if remaining else "finished"
            launch = self.ledger.state.launches
            self.ledger.append("close", sync=True, launch=launch, reason=reason, remaining=remaining)
            return reason
        finally:
            self.ledger.close()

    def snapshot(self) -> Snapshot:
        """Where the sweep is; may be called from another thread."""
        return snapshot.of(self.cells, self.ledger.state, self.budget.elapsed_s, self._ended_here, self.allowed)
