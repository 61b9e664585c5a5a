"""Predicted memory -> a share of a GPU, one of a few: workers can be used again only for trials of the same share."""

from __future__ import annotations

from sweeps import environment
from sweeps.spec import Resources

SHARES = (0.125, 0.1666, 0.25, 0.3333, 0.5, 1.0)
"""As Ray counts them, in ten-thousandths, so that six sixths still fit."""
MARGIN = 1.15
"""Of the prediction: what the allocator loses to fragmentation, and what validation needs beyond a training step."""
CONTEXT_BYTES = 650 * 2**20
"""What a process holds on a GPU before its first tensor."""


def on_gpus(resources: Resources, address: str | None) -> bool:
    """Whether trials use GPUs: as stated; with `auto` on this machine if it has one, and always on a cluster."""
    if resources.gpus_per_trial != "auto":
        return resources.gpus_per_trial > 0
    return address is not None or bool(environment.gpus())


def share(predicted_bytes: int, gpu_bytes: int) -> float | None:
    """The smallest share whose memory holds the trial; None if a whole GPU does not."""
    bytes_ = needed(predicted_bytes)
    return next((share for share in SHARES if share * gpu_bytes >= bytes_), None)


def needed(predicted_bytes: int) -> float:
    """Bytes of a GPU that a trial is given room for."""
    return predicted_bytes * MARGIN + CONTEXT_BYTES
