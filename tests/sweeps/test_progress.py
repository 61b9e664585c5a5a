from __future__ import annotations

import io
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from sweeps import progress
from sweeps.outcomes import Outcome
from sweeps.progress import View
from sweeps.snapshot import Snapshot

HALF_WAY = Snapshot(
    total=12,
    counts={Outcome.DONE: 3, Outcome.STOPPED: 2, Outcome.OOM: 1},
    running=(("rece b256 s1", 2, 10), ("ce b64 s1", 1, 10)),
    best=("rece b128 s1", 0.04123),
    elapsed_s=80.4,
    eta_s=3725.0,
)


def test_a_line_says_everything() -> None:
    assert progress.line(HALF_WAY) == (
        "6/12 cells: 3 done, 2 stopped, 1 failed (1 oom), 2 running; best NDCG@10 0.0412 (rece b128 s1); "
        "1:20, 1:02:05 left"
    )


def test_before_anything_happened() -> None:
    nothing = Snapshot(12, {}, (), None, 0.0, None)
    assert progress.line(nothing) == "0/12 cells: 0 done, 0 stopped, 0 running; 0:00"


def test_the_panel_shows_a_few_trials_and_counts_the_rest() -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(progress.panel(replace(HALF_WAY, running=tuple((f"cell {n}", n, 20) for n in range(11)))))
    text = console.export_text()
    assert "6/12" in text
    assert "cell 7  epoch 7/20" in text
    assert "cell 8" not in text
    assert "and 3 more" in text


class Clicks:
    """A snapshot that moves on at every look, and tells when it has been looked at often enough."""

    def __init__(self, looks: int) -> None:
        self.left, self.done = looks, threading.Event()

    def __call__(self) -> Snapshot:
        self.left -= 1
        if self.left <= 0:
            self.done.set()
        return HALF_WAY


def test_a_log_gets_a_line_a_milestone_and_not_one_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REDRAW_S", 0.001)
    out, clicks = io.StringIO(), Clicks(50)
    with View(clicks, stream=out):
        assert clicks.done.wait(20)
    assert out.getvalue() == progress.line(HALF_WAY) + "\n"


def test_a_log_has_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REDRAW_S", 0.001)
    out = io.StringIO()
    with View(lambda: HALF_WAY, stream=out):
        pass
    assert out.getvalue().isprintable() or out.getvalue().rstrip("\n").isprintable()


def test_quiet_says_nothing() -> None:
    out = io.StringIO()
    with View(lambda: HALF_WAY, quiet=True, stream=out):
        pass
    assert out.getvalue() == ""


def test_a_terminal_is_redrawn_and_left_with_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(progress, "REDRAW_S", 0.001)
    out, clicks = Terminal(), Clicks(5)
    with View(clicks, stream=out):
        assert clicks.done.wait(20)
    text = out.getvalue()
    assert "epoch 2/10" in text
    assert "\x1b[?25h" in text, "the cursor is shown again"
    assert progress.line(HALF_WAY) in text.replace("\n", "")
