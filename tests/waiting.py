"""A stretch of a GPU test in which waiting for the device is an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PROTOTYPE = "Synchronization debug mode is a prototype"
"""How torch's warning begins: once a process, and after the mode has been set."""


@contextmanager
def nothing_waits() -> Iterator[None]:
    """While the block runs, an operation that waits for the device raises RuntimeError. Whatever happens in the block,
    the mode of before is back after it: left on, it would fail every later test."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        _switch("error")
        yield
    finally:
        _switch(before)


def _switch(mode: int | str) -> None:
    """Only this one warning is ignored, and only here: the block's own stay errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=PROTOTYPE, category=UserWarning)
        torch.cuda.set_sync_debug_mode(mode)
