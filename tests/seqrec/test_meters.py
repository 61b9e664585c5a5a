"""A meter measures its own scope; what was not measured is None."""

from __future__ import annotations

import time

import pytest
import torch

from seqrec import meters

CPU = torch.device("cpu")


def test_the_cpu_has_time_but_no_memory() -> None:
    result, reading = meters.measure(lambda: time.sleep(0.01) or "done", CPU)
    assert result == "done"
    assert reading.seconds >= 0.01
    assert reading.peak_bytes is None
    assert reading.reserved_bytes is None
    meters.release(CPU)


def test_a_failing_work_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        meters.measure(lambda: 1 // 0, CPU)


@pytest.mark.gpu
def test_a_scope_does_not_see_what_others_allocated() -> None:
    device = torch.device("cuda")
    meters.release(device)
    kept = torch.zeros(2**20, device=device)
    base = torch.cuda.memory_allocated(device)

    def work(size: int) -> None:
        torch.zeros(size, dtype=torch.uint8, device=device)

    _, large = meters.measure(lambda: work(2**28), device)
    _, small = meters.measure(lambda: work(2**22), device)
    assert large.peak_bytes == base + 2**28
    assert small.peak_bytes == base + 2**22
    assert small.reserved_bytes is not None
    assert small.reserved_bytes >= 2**28, "the cache still holds the large block"
    meters.return_cache(device)
    _, small = meters.measure(lambda: work(2**22), device)
    assert small.reserved_bytes is not None
    assert small.reserved_bytes < 2**28
    del kept
