"""Time and peak device memory of a stated piece of work: measured is the work handed to `measure`, nothing else.

Memory exists as a measurement on CUDA only; elsewhere it is None, never 0. A peak counts everything alive on the device
in that time: weights, gradients, optimiser state, the data kept there, activations.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch

Result = TypeVar("Result")

GIB = 2**30


@dataclass(frozen=True)
class Reading:
    """What one piece of work took."""

    seconds: float
    """Wall time, until the device had finished."""
    peak_bytes: int | None = None
    """Most bytes allocated at a time."""
    reserved_bytes: int | None = None
    """Most bytes held by the allocator at a time: what other processes on the device could not use."""


def measure(work: Callable[[], Result], device: torch.device) -> tuple[Result, Reading]:
    """Runs `work` and reads its time and its own peaks; the device is waited for once, at the end."""
    if device.type != "cuda":
        start = time.perf_counter()
        result = work()
        return result, Reading(time.perf_counter() - start)
    torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    result = work()
    torch.cuda.synchronize(device)
    return result, Reading(
        time.perf_counter() - start, torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    )


@dataclass(frozen=True)
class Growth:
    """What one piece of work added to the memory that was allocated when it began."""

    peak_bytes: int
    """Most bytes at a time."""
    kept_bytes: int
    """What was left at its end; negative if it freed more than it kept."""


def grow(work: Callable[[], Result], device: torch.device) -> tuple[Result, Growth]:
    """Runs `work` and reads what it added to the memory of a CUDA device."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    result, reading = measure(work, device)
    assert reading.peak_bytes is not None, "memory is measured on CUDA only"
    return result, Growth(reading.peak_bytes - before, torch.cuda.memory_allocated(device) - before)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the current one: where kernels without a tensor to tell them, and what a graph keeps of its
    generators, would else go to the process's first."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def release(device: torch.device) -> None:
    """Frees what an earlier run in this process left behind, so that it does not count for the next one."""
    gc.collect()
    return_cache(device)


def forget_workspaces() -> None:
    """Frees the matrix library's workspaces, one for each thread and stream that it has seen, so that the next run
    makes and counts its own as a process's first does. No captured step may be replayed after: it would write to one.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()


def return_cache(device: torch.device) -> None:
    """Hands the allocator's unused memory back, so that one scope's reserve is not read as another's."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
