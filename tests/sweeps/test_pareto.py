"""The front and its numbers against the slow and obvious way to get them."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, strategies as st

from sweeps import pareto
from sweeps.results import Configuration

Make = Callable[..., Any]


def configuration(
    loss: str = "ce", memory: float = 1.0, quality: float = 0.05, sd: float | None = None, n: int = 1, key: str = ""
) -> Configuration:
    name = key or f"{loss}-{memory}-{quality}"
    return Configuration(
        name,
        loss,
        name,
        {"loss.name": loss},
        tuple(map(str, range(n))),
        n,
        quality,
        sd,
        memory,
        {"test/ndcg_at_10": 0.04},
    )


def beats(one: Configuration, other: Configuration) -> bool:
    no_worse = one.memory_gib <= other.memory_gib and one.quality >= other.quality
    return no_worse and (one.memory_gib < other.memory_gib or one.quality > other.quality)


# Few values, so that equal memory, equal quality and equal both come up often.
POINTS = st.lists(
    st.tuples(st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]), st.sampled_from([0.0, 0.01, 0.02, 0.03])), max_size=12
)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    group = [configuration(memory=m, quality=q, key=str(i)) for i, (m, q) in enumerate(points)]
    expected = {c.configuration_key for c in group if not any(beats(other, c) for other in group)}
    found = pareto.front(group)
    assert {c.configuration_key for c in found} == expected
    assert [c.memory_gib for c in found] == sorted(c.memory_gib for c in found)


def area(group: Sequence[Configuration], box: pareto.Box) -> float:
    """Dominated share of the box, added up column by column."""
    low, high = math.log2(box.smallest_gib), math.log2(box.largest_gib)
    x = [min(max(math.log2(c.memory_gib), low), high) for c in group]
    edges = sorted({*x, high})
    total = 0.0
    for left, right in itertools.pairwise(edges):
        reached = max(c.quality for c, at in zip(group, x, strict=True) if at <= left)
        total += (right - left) * min(max(reached, box.least_quality), box.most_quality)
    return total / ((high - low) * (box.most_quality - box.least_quality))


@given(POINTS.filter(bool))
def test_the_hypervolume_is_the_dominated_area(points: list[tuple[float, float]]) -> None:
    group = [configuration(memory=m, quality=q) for m, q in points]
    assert pareto.hypervolume(group) == pytest.approx(area(group, pareto.BOX), abs=1e-12)


def test_the_hypervolume_never_leaves_the_box() -> None:
    outside = [configuration(memory=2.0**-30, quality=2.0), configuration(memory=2.0**20, quality=0.5)]
    assert pareto.hypervolume(outside) == pytest.approx(1.0)
    assert pareto.hypervolume(outside[1:]) == pytest.approx(0.0)
    assert pareto.hypervolume([]) is None


def test_each_loss_has_its_own_front() -> None:
    good, bad = configuration("sce", 1.0, 0.05), configuration("bce", 2.0, 0.01)
    groups = pareto.by_loss([bad, good])
    assert list(groups) == ["bce", "sce"]
    assert pareto.front(groups["bce"]) == (bad,)
    assert pareto.front([good, bad]) == (good,)


def test_near_the_front_needs_replicates() -> None:
    best, close = configuration(memory=1.0, quality=0.050), configuration(memory=2.0, quality=0.0499)
    assert pareto.near_front([best, close]) == {best.configuration_key}


def test_near_the_front_is_two_standard_errors() -> None:
    # Pooled deviation 0.001 and three seeds each: the difference's standard error is 0.001 * sqrt(2 / 3) = 0.00082.
    best = configuration(memory=1.0, quality=0.0500, sd=0.001, n=3)
    close = configuration(memory=2.0, quality=0.0484, sd=0.001, n=3)
    far = configuration(memory=2.0, quality=0.0483, sd=0.001, n=3)
    assert pareto.near_front([best, close, far]) == {best.configuration_key, close.configuration_key}
    assert pareto.pooled_deviation([best, close, far]) == pytest.approx(0.001)


def test_the_pooled_deviation_weighs_by_degrees_of_freedom() -> None:
    two, four = configuration(sd=0.002, n=2), configuration(sd=0.001, n=4)
    expected = math.sqrt((1 * 0.002**2 + 3 * 0.001**2) / 4)
    assert pareto.pooled_deviation([two, four, configuration()]) == pytest.approx(expected)
    assert pareto.pooled_deviation([configuration()]) is None


def test_csv_is_the_front(full: Make, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = full()
    assert pareto.main([str(sweep.directory), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["loss"] for row in rows][-1] == "ce"
    assert [float(row["memory_gib"]) for row in rows] == sorted(float(row["memory_gib"]) for row in rows)
    assert rows[0]["loss.n_negatives"] == "16"
    assert rows[-1]["loss.n_negatives"] == ""


def test_json_is_the_front_of_the_losses_asked_for(full: Make, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = full(measured=False)
    assert pareto.main([str(sweep.directory), "--format", "json", "--loss", "sce, ce"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert {one["loss"] for one in tree["front"]} == {"sce", "ce"}
    assert "closed form" in tree["memory_axis"]
    assert tree["hypervolume_box"] == "memory 2^-10 to 2^8 GiB (log2) x NDCG@10 0 to 1"


def test_the_table_goes_to_the_terminal(full: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert pareto.main([str(full().directory)]) == 0
    told = capsys.readouterr().out
    assert "2 of 3" in told
    assert "peak memory of the train step, GiB" in told


def test_a_sweep_without_results_says_so(made: Make, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = made()
    sweep.open(["a"])
    assert pareto.main([str(sweep.directory)]) == 0
    assert "no complete cell" in capsys.readouterr().out
    assert pareto.main([str(sweep.directory), "--format", "json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["front"], tree["hypervolume"]) == ([], None)


@pytest.mark.parametrize("arguments", [["nowhere"], ["{sweep}", "--loss", "rce"]])
def test_a_mistake_is_told_in_one_line(full: Make, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    sweep = full()
    assert pareto.main([argument.format(sweep=sweep.directory) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "expected" in told.err
