"""Ctrl-C and SIGTERM, as a launch takes them. No torch, no ray."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sweeps.launch import Launch

EXIT_INTERRUPTED = 130


@contextmanager
def heard(launch: Launch) -> Iterator[None]:
    """`listen` for as long as the block runs."""
    before = listen(launch)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen(launch: Launch) -> dict[signal.Signals, Any]:
    """SIGINT and SIGTERM ask the launch to end; the second one ends the process at once. The handlers before."""

    def handle(number: int, frame: FrameType | None) -> None:
        if launch.stopping == "interrupted":
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\x1b[?25h")  # the live view hides the cursor
            os._exit(EXIT_INTERRUPTED)
        launch.interrupt()
        print("\ninterrupted: writing down where everything stands; once more to stop at once", file=sys.stderr)

    return {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
