"""The live view of a sweep on stderr: a panel that redraws itself in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.outcomes import Outcome
from sweeps.snapshot import Snapshot

REDRAW_S = 0.5
LINE_S = 30.0
MILESTONES = 10
"""A log gets a line at least at every 1/MILESTONES of the cells."""
SHOWN_TRIALS = 8


class View:
    """Shows `snapshot()` from a thread of its own while it is open. `quiet`: shows nothing."""

    def __init__(self, snapshot: Callable[[], Snapshot], *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._snapshot = snapshot
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> View:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _show(self) -> None:
        if self._console.is_terminal:
            self._redraw()
        else:
            self._log()

    def _redraw(self) -> None:
        with Live(panel(self._snapshot()), console=self._console, auto_refresh=False, transient=True) as live:
            while not self._closed.wait(REDRAW_S):
                live.update(panel(self._snapshot()), refresh=True)
        self._console.print(line(self._snapshot()))

    def _log(self) -> None:
        said, said_at, milestone = "", -LINE_S, -1
        while True:
            closing = self._closed.wait(REDRAW_S)
            snapshot = self._snapshot()
            reached = snapshot.ended * MILESTONES // max(1, snapshot.total)
            due = closing or reached > milestone or time.monotonic() - said_at >= LINE_S
            if due and line(snapshot) != said:
                said, said_at, milestone = line(snapshot), time.monotonic(), reached
                print(said, file=self._console.file, flush=True)
            if closing:
                return


def line(snapshot: Snapshot) -> str:
    """The sweep in one line: `11/33 cells: 8 done, 3 stopped, 2 running; best NDCG@10 0.0412 (rece b256 s1); 1:20`."""
    words = f"{snapshot.ended}/{snapshot.total} cells: {_counts(snapshot)}"
    if snapshot.best:
        words += f"; best NDCG@10 {snapshot.best[1]:.4f} ({snapshot.best[0]})"
    return f"{words}; {_times(snapshot)}"


def panel(snapshot: Snapshot) -> RenderableType:
    """The sweep as a few lines for a terminal: a bar, the counts, the best, the trials that run."""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(1, snapshot.total), completed=snapshot.ended, width=40),
        Text(f"{snapshot.ended}/{snapshot.total}"),
        Text(_times(snapshot), style="dim"),
    )
    rows: list[RenderableType] = [bar, Text(_counts(snapshot))]
    if snapshot.best:
        rows.append(Text(f"best NDCG@10 {snapshot.best[1]:.4f}  {snapshot.best[0]}", style="green"))
    for label, epochs, most in snapshot.running[:SHOWN_TRIALS]:
        rows.append(Text(f"  {label}  epoch {epochs}/{most}", style="dim"))
    if len(snapshot.running) > SHOWN_TRIALS:
        rows.append(Text(f"  and {len(snapshot.running) - SHOWN_TRIALS} more", style="dim"))
    return Group(*rows)


def _counts(snapshot: Snapshot) -> str:
    failed = sum(count for outcome, count in snapshot.counts.items() if outcome.is_failure)
    words = [f"{snapshot.counts.get(Outcome.DONE, 0)} done", f"{snapshot.counts.get(Outcome.STOPPED, 0)} stopped"]
    if failed:
        kinds = ", ".join(f"{count} {outcome}" for outcome, count in snapshot.counts.items() if outcome.is_failure)
        words.append(f"{failed} failed ({kinds})")
    return ", ".join([*words, f"{len(snapshot.running)} running"])


def _times(snapshot: Snapshot) -> str:
    left = "" if snapshot.eta_s is None else f", {clock(snapshot.eta_s)} left"
    return clock(snapshot.elapsed_s) + left


def clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
