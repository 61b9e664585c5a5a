"""Histories of stated lengths over a catalog of any size: statistics for the closed forms, data for a measured step.

Ids are uniform: they decide no byte of a step but by the lengths. Seeded; no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist

import numpy as np

from seqrec.data.tables import Holdout, Sequences, Split, Statistics

SPREAD = 0.8
"""Standard deviation of the logarithm of a history's length; about that of published sets."""


def statistics(n_users: int, n_items: int, max_length: int, length_mean: float | None) -> Statistics:
    """Of users with `length_mean` items on average, lognormal, two at least; None: all fill their window of
    `max_length` inputs and a target, as in the published memory measurement.

    Lengths are the quantiles of their distribution: the same numbers give the same histogram.
    """
    if length_mean is None:
        lengths = Counter({max_length + 1: n_users})
    else:
        normal = NormalDist(math.log(length_mean) - SPREAD**2 / 2, SPREAD)
        quantiles = (normal.inv_cdf((user + 0.5) / n_users) for user in range(n_users))
        lengths = Counter(max(2, round(math.exp(quantile))) for quantile in quantiles)
    rows = sum(length * users for length, users in lengths.items())
    return Statistics("synthetic data", "", n_users, rows, n_items, n_users, tuple(sorted(lengths.items())))


def split(of: Statistics) -> Split:
    """Training histories with these statistics; one item of one user is held out, for a split holds out somebody."""
    random = np.random.default_rng(0)
    sizes, users = np.array(of.train_lengths).T
    lengths = random.permutation(np.repeat(sizes, users))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = random.integers(0, of.n_items, offsets[-1], dtype=np.int32)
    somebody = Holdout(Sequences(items[:1], np.array([0, 1]), np.array([0])), items[:1])
    train = Sequences(items, offsets, np.arange(len(lengths)))
    return Split(np.arange(of.n_items), train, somebody, somebody, of)
