"""Where randomness comes from: everything random in epoch e follows from (seed, e).

So a run resumed at an epoch's boundary goes on as if it had never been interrupted (bit for bit on CPU), without any
generator's state in its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

_STREAMS = ("weights", "dropout", "negatives", "loss", "masks")
Stream = Literal["weights", "dropout", "negatives", "loss", "masks"]


@dataclass(frozen=True, eq=False)
class EpochGenerators:
    """Generators of one epoch on the training device. Dropout draws from torch's global generator."""

    negatives: torch.Generator
    loss: torch.Generator
    """Random projections and bucket centres."""


def derive(seed: int, epoch: int, stream: Stream) -> int:
    """A seed of 64 bits for one purpose in one epoch (0: before the first), independent of all others."""
    words = np.random.SeedSequence([seed, epoch, _STREAMS.index(stream)]).generate_state(1, np.uint64)
    return int(words[0])


def seed_weights(seed: int) -> None:
    """Fixes what the model draws while it is built."""
    torch.manual_seed(derive(seed, 0, "weights"))


def begin_epoch(seed: int, epoch: int, device: torch.device) -> EpochGenerators:
    """Reseeds torch's global generators for the epoch's dropout and returns the epoch's own generators."""
    generators = EpochGenerators(torch.Generator(device), torch.Generator(device))
    reseed(generators, seed, epoch)
    return generators


def reseed(generators: EpochGenerators, seed: int, epoch: int) -> None:
    """`begin_epoch` with generators that exist: a captured step is tied to them."""
    torch.manual_seed(derive(seed, epoch, "dropout"))
    generators.negatives.manual_seed(derive(seed, epoch, "negatives"))
    generators.loss.manual_seed(derive(seed, epoch, "loss"))


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Leaves torch's global generators as they were: a training run does not disturb its caller's randomness."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
