"""Metrics against values worked out by hand."""

from __future__ import annotations

from math import log2

import pytest
import torch

from seqrec import metrics
from seqrec.metrics import MISS

RANKS = torch.tensor([1, 3, 10, 11, MISS])


def test_ranking_metrics_by_hand() -> None:
    values = metrics.ranking_metrics(RANKS, (1, 10))
    assert values == pytest.approx(
        {
            "ndcg_at_1": 1 / 5,
            "ndcg_at_10": (1 + 1 / 2 + 1 / log2(11)) / 5,
            "hit_rate_at_1": 1 / 5,
            "hit_rate_at_10": 3 / 5,
            "recall_at_1": 1 / 5,
            "recall_at_10": 3 / 5,
            "precision_at_1": 1 / 5,
            "precision_at_10": 3 / 50,
            "mrr_at_1": 1 / 5,
            "mrr_at_10": (1 + 1 / 3 + 1 / 10) / 5,
            "map_at_1": 1 / 5,
            "map_at_10": (1 + 1 / 3 + 1 / 10) / 5,
        }
    )


def test_a_miss_is_beyond_every_cutoff() -> None:
    assert set(metrics.ranking_metrics(torch.tensor([MISS]), (1, 5, 10, 20, 50)).values()) == {0.0}


def test_larger_cutoffs_find_more() -> None:
    values = metrics.ranking_metrics(torch.arange(1, 61), (10, 20, 50))
    assert values["ndcg_at_10"] < values["ndcg_at_20"] < values["ndcg_at_50"]


LISTS = torch.tensor([[0, 1, 2], [0, 3, -1]])


def test_coverage_counts_the_union() -> None:
    assert metrics.coverage(LISTS, 1, 8) == pytest.approx(1 / 8)
    assert metrics.coverage(LISTS, 2, 8) == pytest.approx(3 / 8)
    assert metrics.coverage(LISTS, 3, 8) == pytest.approx(4 / 8)


def test_surprisal_by_hand() -> None:
    item_users = torch.tensor([8, 4, 1, 0, 2])  # weights 0, 1/3, 1, 1, 2/3 among 8 users
    assert metrics.surprisal(LISTS, 1, item_users, 8) == pytest.approx(0)
    assert metrics.surprisal(LISTS, 2, item_users, 8) == pytest.approx((1 / 3 + 1) / 4)
    assert metrics.surprisal(LISTS, 3, item_users, 8) == pytest.approx((1 / 3 + 1 + 1) / 6)


def test_surprisal_of_one_user_is_finite() -> None:
    assert metrics.surprisal(torch.tensor([[0, 1]]), 2, torch.tensor([1, 0]), 1) == pytest.approx(1 / 2)


def test_surprisal_refuses_counts_that_are_not_users() -> None:
    with pytest.raises(ValueError, match=r"item_users: got 9 for an item; expected distinct users, <= n_users \(8\)"):
        metrics.surprisal(LISTS, 1, torch.tensor([9, 0, 0, 0]), 8)
