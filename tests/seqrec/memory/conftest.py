"""Every loss in a size that a CPU steps through in milliseconds, and a meter of what its allocator is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from seqrec import config
from seqrec.meters import Growth

LOSSES: dict[str, dict[str, Any]] = {
    "ce": {"chunk_bytes": 2**22},
    "cce": {"block_items": 512},
    "bce": {"n_negatives": 64},
    "bce_plus": {"n_negatives": 64},
    "gbce": {"n_negatives": 128},
    "ce_minus": {"n_negatives": 128},
    "cce_minus": {"n_negatives": 64},
    "sce": {"n_buckets": 40, "bucket_size_x": 40, "bucket_size_y": 64, "mix_x": True},
    "rece": {"n_buckets": 70, "rounds": 3},
}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make_run() -> Callable[..., config.Run]:
    def make(loss: str = "ce", *, batch_size: int = 64, keys: dict | None = None, **model: Any) -> config.Run:
        return config.parse(
            {
                "data": {"path": "made up"},
                "model": {
                    "name": "sasrec",
                    "max_length": 32,
                    "hidden_size": 32,
                    "dropout": 0.0,
                    "mask_padding": True,
                    **model,
                },
                "loss": {"name": loss, **LOSSES[loss], **(keys or {})},
                "train": {"batch_size": batch_size, "engine": "eager"},
            }
        )

    return make


@pytest.fixture
def cpu_meter() -> Callable[[Callable[[], Any]], tuple[Any, Growth]]:
    def meter(work: Callable[[], Any]) -> tuple[Any, Growth]:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            result = work()
        events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        alive = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            alive += event.nbytes()
            peak = max(peak, alive)
        return result, Growth(peak, alive)

    return meter
