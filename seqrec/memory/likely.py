"""How many positions the largest batch of a run has, from a histogram of its histories. Neither torch nor numpy."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

EPOCHS = 20
"""Most epochs whose batches are thought of: early stopping ends most runs by then, and each doubling adds a few tenths
of a standard deviation."""


class OfWindow(NamedTuple):
    """Positions of a user's window: mean, variance, skewness; and their sum over all users."""

    mean: float
    variance: float
    skewness: float
    total: int

    def largest(self, users: int, of_all: int, deviations: float) -> int:
        """Positions of a batch of `users` out of `of_all` that lies so many standard deviations above the mean, for a
        sum that is near normal but for its skewness (Cornish and Fisher)."""
        unlike = 1 - users / of_all
        scale = math.sqrt(users * self.variance * unlike)
        lean = self.skewness / math.sqrt(users) * math.sqrt(unlike)
        shifted = deviations + (deviations**2 - 1) * lean / 6
        return math.ceil(users * self.mean + max(0.0, shifted) * scale)


@lru_cache(maxsize=64)
def positions_of(lengths: tuple[tuple[int, int], ...], last: int, max_length: int) -> OfWindow:
    """lengths: (items in a history, users); last: items of a history that are no inputs."""
    counts = [(min(length - last, max_length), users) for length, users in lengths]
    n_users = sum(users for _, users in counts)
    total = sum(inputs * users for inputs, users in counts)
    mean = total / n_users
    variance = sum(users * (inputs - mean) ** 2 for inputs, users in counts) / n_users
    third = sum(users * (inputs - mean) ** 3 for inputs, users in counts) / n_users
    return OfWindow(mean, variance, third / variance**1.5 if variance else 0.0, total)


def deviations(batches: int) -> float:
    """Where the largest of so many standard normal numbers lies: its median."""
    return NormalDist().inv_cdf(0.5 ** (1 / max(1, batches))) if batches > 1 else 0.0
