"""Every law at its edge: the last configuration that exists, and the first that does not."""

from __future__ import annotations

from typing import Any

import pytest

from seqrec import config, feasibility
from seqrec.data.tables import Statistics
from seqrec.errors import InfeasibleError

SMALL: dict[str, Any] = {
    "name": "small", "digest": "0" * 64, "n_users": 50, "n_interactions": 900, "n_items": 100, "n_train_users": 40,
    "train_lengths": ((2, 39), (30, 1)), "longest_distinct_history": 20,
}  # fmt: skip


def statistics(**changes: Any) -> Statistics:
    return Statistics(**(SMALL | changes))


def run(loss: dict[str, Any], **train: Any) -> config.Run:
    return config.parse(
        {
            "data": {"path": "small"},
            "model": {"name": "sasrec", "max_length": 5},
            "loss": loss,
            "train": {"batch_size": 4, **train},
        }
    )


USER = {"name": "ce_minus"}
WITH = {"name": "ce_minus", "with_replacement": True}
FREE = {"name": "ce_minus", "exclude_history": False}
SCE = {"name": "sce", "n_buckets": 2, "bucket_size_x": 2, "bucket_size_y": 2}
RECE = {"name": "rece", "n_buckets": 2}


@pytest.mark.parametrize(
    ("loss", "key", "most", "law"),
    [
        ({"name": "bce"}, "n_negatives", 80, "the items of small that its largest training history leaves"),
        (USER, "n_negatives", 80, "the items of small that its largest training history leaves"),
        (FREE, "n_negatives", 99, "the items of small beside the target"),
        ({"name": "gbce"}, "n_negatives", 99, "the items of small beside the target"),
        (SCE, "bucket_size_y", 100, "the items of small"),
        (SCE, "n_buckets", 20, "batch_size * max_length"),
        (SCE, "bucket_size_x", 20, "batch_size * max_length"),
        (RECE, "n_buckets", 100, "buckets_per_chunk * the items of small: no chunk is empty"),
    ],
)
def test_the_edge_of_a_law(loss: dict[str, Any], key: str, most: int, law: str) -> None:
    feasibility.check(run(loss | {key: most}), statistics())
    broken = run(loss | {key: most + 1})
    words = f"loss.{key}: got {most + 1}; expected <= {most}, {law}."
    assert feasibility.violations(broken, statistics()) == [words]
    with pytest.raises(InfeasibleError) as refusal:
        feasibility.check(broken, statistics())
    assert str(refusal.value) == words


@pytest.mark.parametrize("key", ["n_buckets", "bucket_size_x"])
def test_a_masked_window_shows_one_item_at_least(key: str) -> None:
    def cell(size: int) -> config.Run:
        model = config.Bert4rec(name="bert4rec", max_length=5)
        return run(SCE | {key: size}).model_copy(update={"model": model})

    assert feasibility.violations(cell(16), statistics()) == []
    words = f"loss.{key}: got 17; expected <= 16, batch_size * (max_length - 1)."
    assert feasibility.violations(cell(17), statistics()) == [words]


def test_buckets_share_chunks() -> None:
    feasibility.check(run(RECE | {"n_buckets": 200, "buckets_per_chunk": 2}), statistics())
    assert feasibility.violations(run(RECE | {"n_buckets": 202, "buckets_per_chunk": 2}), statistics())


@pytest.mark.parametrize("loss", [WITH, {"name": "bce_plus"}, {"name": "cce_minus"}])
def test_draws_with_replacement_have_no_limit(loss: dict[str, Any]) -> None:
    assert feasibility.violations(run(loss | {"n_negatives": 4096}), statistics()) == []


def test_excluding_a_history_of_everything_leaves_nothing_to_draw() -> None:
    found = feasibility.violations(run(WITH | {"n_negatives": 1}), statistics(longest_distinct_history=100))
    assert [law.partition(":")[0] for law in found] == ["loss.exclude_history"]


def test_repeats_in_a_history_leave_more_items_but_uncounted_ones_are_taken_at_their_worst() -> None:
    cell = run({"name": "bce", "n_negatives": 75})
    assert feasibility.violations(cell, statistics()) == []
    assert feasibility.violations(cell, statistics(longest_distinct_history=None)) == [
        "loss.n_negatives: got 75; expected <= 70, the items of small that its largest training history leaves."
    ]


def test_drop_last_needs_a_whole_batch() -> None:
    assert feasibility.violations(run({"name": "ce"}, batch_size=40, drop_last=True), statistics()) == []
    assert feasibility.violations(run({"name": "ce"}, batch_size=41), statistics()) == []
    assert feasibility.violations(run({"name": "ce"}, batch_size=41, drop_last=True), statistics()) == [
        "train.batch_size: got 41; expected <= 40, the users of small to train on."
    ]


def test_every_broken_law_is_listed_and_the_first_is_raised() -> None:
    nothing = statistics(n_items=1, n_train_users=0, train_lengths=(), longest_distinct_history=1)
    cell = run({"name": "sce", "n_buckets": 21, "bucket_size_x": 2, "bucket_size_y": 2})
    keys = [law.partition(":")[0] for law in feasibility.violations(cell, nothing)]
    assert keys == ["data.path", "data.path", "loss.bucket_size_y", "loss.n_buckets"]
    with pytest.raises(
        InfeasibleError, match=r"data\.path: got 'small'; expected at least 2 items in the catalog, not 1"
    ):
        feasibility.check(cell, nothing)


@pytest.mark.parametrize("n_negatives", [2**k for k in range(13)])
@pytest.mark.parametrize("name", ["bce", "gbce", "ce_minus"])
def test_the_papers_negatives_exist_on_the_papers_smallest_catalog(name: str, n_negatives: int) -> None:
    beauty = statistics(n_items=12_101, n_train_users=22_363, longest_distinct_history=202)
    assert feasibility.violations(run({"name": name, "n_negatives": n_negatives}), beauty) == []
