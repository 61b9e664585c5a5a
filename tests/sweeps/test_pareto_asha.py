"""The rule that keeps the front, on its own: whom it stops, whom it lets wait, whom it promotes."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from sweeps.cells import Cell
from sweeps.pareto_asha import ParetoAsha, Rung, stratum
from sweeps.verdicts import Verdict
from tests.sweeps.rivals import cell, rule


def test_rungs_are_spaced_and_end_before_the_last_epoch() -> None:
    assert rule([cell(1)]).levels == [1, 3, 9]
    assert rule([cell(1)], grace_epochs=2, rung_factor=2.0).levels == [2, 4, 8, 16]
    assert rule([cell(1, epochs=6)], rung_factor=1.2).levels == [1, 2, 3, 4, 5]
    assert rule([cell(1, epochs=1)]).levels == []


def test_the_margin_shrinks_evenly_from_rung_to_rung() -> None:
    one = rule([cell(1)], margin=0.15, last_margin=0.03)
    assert [one.margin(level) for level in (1, 3, 9, 27)] == pytest.approx([0.15, 0.11, 0.07, 0.03])


def test_a_cell_competes_only_with_those_of_no_more_memory() -> None:
    small, large = cell(1, memory=100), cell(2, memory=800)
    one = rule([small, large])
    one.record(large, 1, 0.9)
    assert not one.record(small, 1, 0.1).stop
    other = rule([small, large, cell(3, memory=801)])
    other.record(small, 1, 0.9)
    other.record(cell(3, memory=801), 1, 0.85)
    assert other.record(large, 1, 0.8).stop


def test_the_margin_is_what_a_rival_may_be_better_by() -> None:
    some = [cell(n, memory=100 + n) for n in range(1, 5)]
    one = rule(some)
    one.record(some[0], 1, 0.5)
    assert not one.record(some[1], 1, 0.5 / 1.09).stop
    verdict = one.record(some[2], 1, 0.5 / 1.11)
    assert verdict.stop
    assert (
        verdict.reason == "pareto_asha: 0.45045 at epoch 1 is 9.91 % short of the front of no more memory; margin 10 %"
    )


def test_a_failure_that_is_tried_again_counts_again() -> None:
    first, second = cell(1, memory=100), cell(2, memory=101)
    assert stratum(first) == stratum(second)
    one = rule([first, second], promote=False)
    one.ended(first, None)
    one.record(first, 1, 0.9)
    assert not one.record(second, 1, 0.1).stop, "what is over is nobody's rival"
    one.reopened(first)
    assert first in one.eligible([first])
    one.record(first, 3, 0.9)
    assert one.record(second, 3, 0.1).stop


def test_the_best_of_a_half_octave_waits_though_it_is_dominated() -> None:
    """Large batches learn slowly: early on, everything that needs much memory is worse than what needs little."""
    small, large, larger = cell(1, memory=100), cell(2, memory=900), cell(3, memory=901)
    one = rule([small, large, larger])
    one.record(small, 1, 0.9)
    assert one.record(large, 1, 0.2).pause
    assert one.record(larger, 1, 0.1).stop
    assert large in one.eligible([large])
    unguarded = rule([small, large, larger], guard=False)
    unguarded.record(small, 1, 0.9)
    assert unguarded.record(large, 1, 0.2).stop


def test_the_best_of_a_loss_waits_though_it_is_dominated() -> None:
    """A comparison of losses needs a result of each, and losses learn at different speeds."""
    quick, slow, slower = cell(1), cell(2, memory=101, loss="cce"), cell(3, memory=101, loss="cce")
    one = rule([quick, slow, slower])
    one.record(quick, 1, 0.9)
    assert one.record(slow, 1, 0.2).pause
    assert one.record(slower, 1, 0.1).stop
    assert one.eligible([slow]) == [slow]
    assert rule([quick, slow], guard=False).record(slow, 1, 0.2).pause, "no rival yet"


def test_the_best_of_a_batch_size_waits_though_it_is_dominated() -> None:
    quick, slow, slower = cell(1), cell(2, memory=101, batch=512), cell(3, memory=101, batch=512)
    one = rule([quick, slow, slower])
    one.record(quick, 1, 0.9)
    assert one.record(slow, 1, 0.2).pause
    assert one.record(slower, 1, 0.1).stop


def test_who_leads_its_kin_no_longer_is_dismissed() -> None:
    quick, slow, better = cell(1), cell(2, memory=101, loss="cce"), cell(3, memory=102, loss="cce")
    one = rule([quick, slow, better])
    for each, value in ((slow, 0.2), (better, 0.3), (quick, 0.9)):
        one.record(each, 1, value)
    assert one.eligible([quick, slow, better]) == [quick, better]
    assert [each for each, _ in one.dismissed([slow, better], last=False)] == [slow]


def test_half_octaves() -> None:
    assert stratum(cell(1, memory=1024)) == stratum(cell(1, memory=1448)) == stratum(cell(1, memory=1449)) - 1


def test_promotion_waits_for_new_cells_and_takes_the_front_first() -> None:
    some = [cell(n, memory=100 + n) for n in range(1, 7)]
    one = rule(some, keep=0.6)
    values = (0.50, 0.49, 0.48, 0.47, 0.51, 0.40)
    for each, value in zip(some[:5], values, strict=False):
        one.started(each)
        assert one.record(each, 1, value).pause
    assert one.eligible(some) == [some[5]]
    one.started(some[5])
    assert one.record(some[5], 1, values[5]).stop
    one.ended(some[5], None)
    # Deficits of the five that wait: 1, 1.02, 1.04, 1.06, 1; 4 of the 6 in this half-octave may pass.
    assert one.eligible(some[:5]) == [some[0], some[4], some[1], some[2]]


def test_a_cell_that_others_overtook_while_it_waited_is_not_promoted_but_dismissed() -> None:
    late, early, cheap = cell(1, memory=103), cell(2, memory=102), cell(3, memory=101)
    one = rule([early, late, cheap])
    for each, value in ((early, 0.30), (late, 0.31), (cheap, 0.5)):
        one.started(each)
        assert one.record(each, 1, value).pause
    assert one.eligible([early, late, cheap]) == [cheap]
    dismissed = one.dismissed([early, late, cheap], last=False)
    assert [each for each, _ in dismissed] == [early, late]
    assert "0.3 at epoch 1 is 40 % short" in dismissed[0][1]


def test_lower_rungs_are_filled_before_higher_ones() -> None:
    some = [cell(n, memory=99 + n) for n in (1, 2)]
    one = rule(some)
    for each in some:
        one.record(each, 1, 0.5)
    one.started(some[0])
    assert one.record(some[0], 3, 0.6).pause
    assert one.eligible(some) == [some[1]]


def test_a_training_that_lost_its_patience_is_a_rival_at_later_rungs() -> None:
    quick, slow = cell(1), cell(2)
    one = rule([quick, slow], guard=False)
    one.record(quick, 1, 0.5)
    one.ended(quick, 0.8)
    one.started(slow)
    assert one.record(slow, 1, 0.49).pause
    one.started(slow)
    assert one.record(slow, 3, 0.5).stop


def test_not_a_number_stops_and_is_no_rival() -> None:
    one = rule([cell(1), cell(2)])
    assert one.record(cell(1), 1, math.nan).stop
    assert not one.record(cell(2), 1, 0.0).stop


def test_a_cell_is_never_stopped_or_put_off_at_its_own_last_epoch() -> None:
    short, long = cell(1, epochs=3), cell(2, epochs=27)
    one = rule([short, long])
    one.record(long, 3, 0.9)
    assert one.record(short, 3, 0.1) == Verdict()


def test_without_promotion_nothing_waits() -> None:
    some = [cell(n) for n in range(1, 4)]
    one = rule(some, promote=False)
    assert one.record(some[0], 1, 0.5) == Verdict()
    assert one.record(some[1], 1, 0.48) == Verdict()
    assert one.record(some[2], 1, 0.4).stop


# ----------------------------------------------------------------------------------------------------------- properties


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=40))
def test_the_staircase_is_the_best_of_no_more_memory(points: list[tuple[int, int]]) -> None:
    rung = Rung()
    for number, (memory, value) in enumerate(points, start=1):
        rung.add(cell(number, memory), value)
    for memory in range(1, 31):
        best = max((value for other, value in points if other <= memory), default=0)
        assert rung.deficit(cell(1, memory), 0.5) == max(1.0, best / 0.5)


def play(one: ParetoAsha, some: list[Cell], draw: random.Random, log: list[tuple[Any, ...]], steps: int) -> set[str]:
    """A sweep on three workers, as a log of what the rule was told; the cells that have no end yet."""
    waiting, running, epochs = list(some), [], dict.fromkeys((each.cell_key for each in some), 0)
    for _ in range(steps):
        while len(running) < 3 and (ready := one.eligible(waiting)):
            waiting.remove(ready[0])
            running.append(ready[0])
            one.started(ready[0])
            log.append(("start", ready[0]))
        if not running:
            break
        each = running.pop(draw.randrange(len(running)))
        epochs[each.cell_key] += 1
        value = draw.choice([None, math.nan, *(n / 50 for n in range(30, 50))])
        log.append(("epoch", each, epochs[each.cell_key], value))
        verdict = one.record(each, epochs[each.cell_key], value)
        if verdict.pause:
            waiting.append(each)
        elif verdict.stop or epochs[each.cell_key] == each.run.train.epochs:
            result = None if verdict.stop else value
            one.ended(each, result)
            log.append(("end", each, result))
        else:
            running.append(each)
    return {each.cell_key for each in (*waiting, *running)}


def told(one: ParetoAsha) -> dict[str, Any]:
    """What the rule was told, without what it remembers of having been asked."""
    return {name: value for name, value in vars(one).items() if name not in ("stale", "_looked_up_to")}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 150))
def test_a_rule_rebuilt_from_the_record_decides_as_the_one_that_lived_through_it(seed: int, steps: int) -> None:
    draw = random.Random(seed)
    some = [cell(n, draw.randint(50, 400), seed=s) for n in range(1, 9) for s in (1, 2)]
    live, log = rule(some, keep=0.7), []
    left = play(live, some, draw, log, steps)
    again = rule(some, keep=0.7)
    for kind, each, *rest in log:
        getattr(again, {"start": "started", "epoch": "record", "end": "ended"}[kind])(each, *rest)
    assert told(again) == told(live)
    waiting = [each for each in some if each.cell_key in left]
    assert again.eligible(waiting) == live.eligible(waiting)
    assert again.dismissed(waiting, last=True) == live.dismissed(waiting, last=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_the_front_is_kept_where_early_values_tell_the_truth(seed: int) -> None:
    draw = random.Random(seed)
    some = [cell(n, draw.randint(50, 800)) for n in range(1, 16)]
    quality = {each.cell_key: draw.randint(1, 30) / 30 for each in some}
    one, waiting = rule(some, keep=0.3, margin=0.0, last_margin=0.0), list(some)
    done, running, epochs = [], [], dict.fromkeys(quality, 0)
    while True:
        while len(running) < 3 and (ready := one.eligible(waiting)):
            waiting.remove(ready[0])
            running.append(ready[0])
            one.started(ready[0])
        if not running:
            break
        each = running.pop(draw.randrange(len(running)))
        epochs[each.cell_key] += 1
        verdict = one.record(each, epochs[each.cell_key], quality[each.cell_key])
        if verdict.pause:
            waiting.append(each)
        elif epochs[each.cell_key] == 27:
            done.append(each)
            one.ended(each, quality[each.cell_key])
        elif not verdict.stop:
            running.append(each)
    kept = {(each.predicted_bytes, quality[each.cell_key]) for each in done}
    every = {(each.predicted_bytes, quality[each.cell_key]) for each in some}
    front = {(m, q) for m, q in every if not any(o <= m and p >= q and (o, p) != (m, q) for o, p in every)}
    assert front <= kept
