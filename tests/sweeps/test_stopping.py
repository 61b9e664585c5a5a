from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, strategies as st

from seqrec.config import Run
from sweeps import cells, stopping
from sweeps.cells import Cell
from sweeps.spec import SchedulerSpec
from sweeps.stopping import Asha, Fifo

DIGEST = "0" * 64


def cell(batch_size: int, seed: int = 1, epochs: int = 27) -> Cell:
    tree: dict[str, Any] = {
        "data": {"path": "x"},
        "model": {"name": "sasrec"},
        "loss": {"name": "ce"},
        "train": {"batch_size": batch_size, "seed": seed, "epochs": epochs},
    }
    run = Run.model_validate(tree)
    parameters: dict[str, Any] = {"loss.name": "ce", "train.batch_size": batch_size, "train.seed": seed}
    return Cell(*cells.keys(run, DIGEST), run, parameters, 1)


def asha(grace: int = 1, factor: float = 3.0, epochs: int = 27) -> Asha:
    return Asha(grace, factor, epochs)


def test_rungs_end_before_the_last_epoch() -> None:
    assert list(asha(1, 3, 27).rungs) == [1, 3, 9]
    assert list(asha(2, 3, 20).rungs) == [2, 6, 18]
    assert list(asha(1, 1.5, 6).rungs) == [1, 2, 3, 5]
    assert list(asha(5, 3, 5).rungs) == []
    assert asha(1, 1.5, 6).levels == [1, 2, 3, 5], "where a trial writes a checkpoint in any case"


def test_the_best_third_goes_on() -> None:
    rule = asha()
    for size, value in ((1, 0.1), (2, 0.2), (3, 0.3)):
        assert not rule.record(cell(size), 1, value).stop or size == 1
    # The cut of 0.1, 0.2, 0.3 at two thirds is 0.2333.
    assert rule.record(cell(4), 1, 0.23).stop
    verdict = rule.record(cell(5), 1, 0.05)
    assert verdict.stop
    assert "0.05 at epoch 1" in verdict.reason


def test_the_cut_is_the_linear_quantile() -> None:
    rung = stopping.Rung()
    values = [0.5, 0.1, 0.9, 0.3, 0.7]
    for i, value in enumerate(values):
        rung.add(f"c{i}", value)
    assert rung.cut("other", 0.5) == pytest.approx(0.5)
    assert rung.cut("other", 2 / 3) == pytest.approx(0.6333333)
    assert rung.cut("c2", 1.0) == pytest.approx(0.7), "its own value is no rival"


def test_the_first_arrival_has_no_rivals() -> None:
    assert not asha().record(cell(1), 1, -1.0).stop


def test_seeds_of_one_configuration_are_no_rivals() -> None:
    rule = asha()
    assert not rule.record(cell(1, seed=1), 1, 0.9).stop
    assert not rule.record(cell(1, seed=2), 1, 0.1).stop
    assert not rule.record(cell(1, seed=3), 1, 0.0).stop


def test_a_configuration_counts_once_with_the_mean_of_its_seeds() -> None:
    rule = asha()
    for seed, value in ((1, 0.0), (2, 0.6)):
        rule.record(cell(1, seed=seed), 1, value)
    assert rule.rungs[1].ranking == pytest.approx([0.3])
    assert not rule.record(cell(2), 1, 0.31).stop
    assert rule.record(cell(3), 1, 0.29).stop


def test_coarse_reports_fill_the_highest_rung_reached() -> None:
    rule = asha()
    for epoch in (1, 2, 3):
        rule.record(cell(1), epoch, None)
    rule.record(cell(1), 4, 0.5)
    assert [len(rung.values) for rung in rule.rungs.values()] == [0, 1, 0]
    assert rule.record(cell(2), 5, 0.1).stop


def test_between_rungs_nothing_is_judged() -> None:
    rule = asha()
    rule.record(cell(1), 1, 0.5)
    rule.record(cell(2), 1, 0.6)
    assert not rule.record(cell(2), 2, 0.0).stop


def test_a_cell_is_not_stopped_at_its_own_last_epoch() -> None:
    rule = asha(grace=3)
    rule.record(cell(1), 3, 0.9)
    assert not rule.record(cell(2, epochs=3), 3, 0.1).stop
    assert rule.record(cell(3, epochs=4), 3, 0.1).stop


def test_not_a_number_is_worse_than_any_number() -> None:
    rule = asha()
    rule.record(cell(1), 1, 0.0)
    assert rule.record(cell(2), 1, math.nan).stop
    assert not rule.record(cell(3), 1, 0.0).stop, "and does not poison the cut"


def test_an_epoch_seen_before_changes_nothing() -> None:
    rule = asha()
    rule.record(cell(1), 1, 0.5)
    rule.record(cell(2), 1, 0.1)
    before = repr(rule)
    assert not rule.record(cell(2), 1, 0.0).stop
    assert repr(rule) == before


values = st.one_of(st.none(), st.floats(0, 1).map(lambda x: round(x, 2)), st.just(math.inf))


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 2), values), max_size=60), st.integers(0, 60))
def test_a_state_rebuilt_from_the_record_is_the_state_lived_through(
    arrivals: list[tuple[int, int, float | None]], crash_at: int
) -> None:
    """Whenever a crash comes, replaying the epochs on record gives the same state, and the same verdict for the last
    one of every cell: which cells were doomed when the crash came."""
    live, record, stopped = asha(), [], {}
    epochs: Counter[str] = Counter()
    for size, seed, value in arrivals:
        one = cell(size, seed)
        if one.cell_key in stopped:
            continue
        epochs[one.cell_key] += 1
        epoch = epochs[one.cell_key]
        record.append((one, epoch, value))
        verdict = live.record(one, epoch, value)
        if verdict.stop:
            stopped[one.cell_key] = verdict
        if len(record) == crash_at:
            break
    rebuilt = asha()
    last = {one.cell_key: rebuilt.record(one, epoch, value) for one, epoch, value in record}
    assert rebuilt == live
    assert {key: verdict for key, verdict in last.items() if verdict.stop} == stopped


@given(st.permutations(range(12)))
def test_the_best_cell_is_never_stopped(order: list[int]) -> None:
    rule = asha()
    for quality in order:
        for epoch in range(1, 28):
            verdict = rule.record(cell(quality + 1), epoch, quality / 10)
            assert not (verdict.stop and quality == 11)
            if verdict.stop:
                break


def test_fifo_stops_nobody() -> None:
    rule = stopping.rule(SchedulerSpec(name="fifo"), [])
    assert isinstance(rule, Fifo)
    assert not any(rule.record(cell(n), 1, -float(n)).stop for n in range(1, 20))


def test_the_rule_of_a_space_knows_the_longest_training() -> None:
    rule = stopping.rule(SchedulerSpec(name="asha", grace_epochs=2), [cell(1, epochs=5), cell(2, epochs=20)])
    assert rule == Asha(2, 3.0, 20)


def test_cells_start_as_declared_under_fifo_and_shuffled_by_seed_under_asha() -> None:
    declared = [cell(n) for n in range(1, 31)]
    assert stopping.order(SchedulerSpec(name="fifo"), declared) == declared
    assert stopping.order(SchedulerSpec(name="asha", shuffle_seed=None), declared) == declared
    shuffled = stopping.order(SchedulerSpec(name="asha", shuffle_seed=3), declared)
    random.seed(99)
    assert shuffled == stopping.order(SchedulerSpec(name="asha", shuffle_seed=3), declared)
    assert shuffled != declared
    assert sorted(shuffled, key=lambda c: c.run.train.batch_size) == declared
