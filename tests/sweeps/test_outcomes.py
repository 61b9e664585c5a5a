from __future__ import annotations

import pytest
import torch

from seqrec.errors import DivergedError
from sweeps import outcomes
from sweeps.outcomes import Outcome


class RayTaskError(Exception):
    """Carries what a worker raised in `cause`, as Ray's does."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("remote")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), Outcome.OOM),
        (torch.AcceleratorError("CUDA error: out of memory"), Outcome.OOM),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Outcome.OOM),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), Outcome.OOM),
        (MemoryError(), Outcome.OOM),
        (DivergedError("train/loss"), Outcome.DIVERGED),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Outcome.ERROR),
        (ValueError("CUDA error: out of memory"), Outcome.ERROR),
        (KeyError("x"), Outcome.ERROR),
        (RayTaskError(torch.OutOfMemoryError("x")), Outcome.OOM),
        (RayTaskError(KeyError("x")), Outcome.ERROR),
    ],
)
def test_exceptions_become_outcomes(error: BaseException, outcome: Outcome) -> None:
    assert outcomes.of(error) is outcome


def test_a_cause_counts() -> None:
    outer = ValueError("while loading")
    outer.__cause__ = MemoryError()
    assert outcomes.of(outer) is Outcome.OOM


def test_a_cause_that_points_to_itself_ends() -> None:
    error = RayTaskError(KeyError("x"))
    error.cause = error
    assert outcomes.of(error) is Outcome.ERROR


def test_a_reason_ends_with_the_message_and_is_short() -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise KeyError("the end")

    with pytest.raises(KeyError) as caught:
        deep(30)
    lines = outcomes.reason(caught.value).splitlines()
    assert lines[-1] == "KeyError: 'the end'"
    assert len(lines) == outcomes.REASON_LINES


def test_only_interrupted_is_not_terminal() -> None:
    assert [outcome for outcome in Outcome if not outcome.is_terminal] == [Outcome.INTERRUPTED]
