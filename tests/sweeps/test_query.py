"""Questions to a sweep against a search by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from sweeps import query
from sweeps.results import Configuration

Make = Callable[..., Any]


def configuration(loss: str, memory: float, quality: float, test: float | None = None) -> Configuration:
    tests = {} if test is None else {"test/ndcg_at_10": test}
    name = f"{loss} {memory} {quality}"
    return Configuration(name, loss, name, {"loss.name": loss}, ("1",), 1, quality, None, memory, tests)


GROUPS = st.lists(
    st.builds(
        configuration,
        st.sampled_from(["ce", "sce", "bce"]),
        st.sampled_from([0.25, 0.5, 1.0, 2.0]),
        st.sampled_from([0.01, 0.0475, 0.05, 0.06]),
    ),
    max_size=12,
)


@given(GROUPS, st.sampled_from([0.1, 0.5, 4.0]))
def test_the_best_under_a_limit(group: list[Configuration], limit: float) -> None:
    found = query.best_under(group, limit)
    fitting = [c for c in group if c.memory_gib <= limit]
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert found.quality == max(c.quality for c in fitting)
    assert found.memory_gib == min(c.memory_gib for c in fitting if c.quality == found.quality)


@given(GROUPS)
def test_savings_are_least_memory_at_the_same_quality(group: list[Configuration]) -> None:
    found = query.savings(group, "ce", tolerance=0.05)
    baseline = [c for c in group if c.loss == "ce"]
    if not baseline:
        assert found == {}
        return
    target = 0.95 * max(c.quality for c in baseline)
    expected = {
        loss: min(c.memory_gib for c in group if c.loss == loss and c.quality >= target)
        for loss in {c.loss for c in group if c.quality >= target}
    }
    assert {loss: saving.candidate.memory_gib for loss, saving in found.items()} == expected
    for loss, saving in found.items():
        assert saving.memory_ratio == expected["ce"] / expected[loss]


def test_the_baseline_is_given_its_cheapest_way_too() -> None:
    """Half of ce's memory at 98 % of its quality: a loss that needs a quarter saves 2x and not 4x."""
    group = [configuration("ce", 4.0, 0.0500), configuration("ce", 2.0, 0.0490), configuration("sce", 1.0, 0.0485)]
    saving = query.savings(group)["sce"]
    assert saving.memory_ratio == 2.0
    assert saving.quality_ratio == pytest.approx(0.97)
    assert not saving.on_test


def test_quality_is_compared_on_test_if_both_have_it() -> None:
    group = [configuration("ce", 4.0, 0.05, test=0.04), configuration("sce", 1.0, 0.05, test=0.03)]
    assert query.savings(group)["sce"].quality_ratio == pytest.approx(0.75)
    group[1] = configuration("sce", 1.0, 0.05)
    assert query.savings(group)["sce"].quality_ratio == pytest.approx(1.0)


def test_the_command_prints_the_best_under_a_limit(full: Make, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = full()
    assert query.main([str(sweep.directory), "--max-memory-gib", "0.5"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["loss"], tree["memory_gib"] <= 0.5) == ("rece", True)


def test_the_command_compares_with_a_baseline(full: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert query.main([str(full().directory)]) == 0
    told = capsys.readouterr().out
    assert "rece           1.84 GiB    4.4x less  test NDCG@10 98% of the best ce" in told
    assert "sce        does not reach it" in told


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (["--max-memory-gib", "0.01"], "expected at least 0.1224"),
        (["--baseline", "cce"], "--baseline: got 'cce'"),
        (["--tolerance", "1.5"], "expected a number in [0, 1)"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    full: Make, capsys: pytest.CaptureFixture[str], arguments: list[str], law: str
) -> None:
    assert query.main([str(full().directory), *arguments]) == 2
    assert law in capsys.readouterr().err
