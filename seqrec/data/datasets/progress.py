"""How far a preparation is, on stderr: a bar in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

LINE_S = 10.0

Advance = Callable[[int, str], None]
"""(how much is done, words)"""


class Progress:
    """Shows one stage after the other."""

    def __init__(self, stream: TextIO | None = None, *, line_s: float = LINE_S) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._line_s = line_s

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        """A stage that is over once `total` is done."""
        total = max(total, 1)
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
            with Bar(*columns, TimeRemainingColumn(), console=self._console, transient=True) as bar:
                task = bar.add_task(title, total=total, words="")

                def move(done: int, words: str = "") -> None:
                    bar.update(task, completed=done, words=words)

                yield move
            return
        self.say(title)
        said_at = time.monotonic()

        def advance(done: int, words: str = "") -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= self._line_s:
                said_at = time.monotonic()
                self.say(f"{title}: {min(100 * done // total, 100)} %" + (f", {words}" if words else ""))

        yield advance

    def say(self, words: str) -> None:
        """A line that stays."""
        self._console.print(words, markup=False)
