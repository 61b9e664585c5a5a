"""Replicates: who gets a further seed, and when."""

from __future__ import annotations

from sweeps.cells import Cell
from sweeps.pareto_asha import ParetoAsha
from tests.sweeps.rivals import cell, rule


def finish(one: ParetoAsha, each: Cell, value: float) -> None:
    one.started(each)
    one.ended(each, value)


def test_further_seeds_are_for_configurations_that_could_be_on_the_front() -> None:
    good, near, bad = ([cell(n, memory=100 + n, seed=seed) for seed in (1, 2, 3)] for n in (1, 2, 3))
    one = rule([*good, *near, *bad])
    waiting = [*good, *near, *bad]
    assert one.eligible(waiting) == [good[0], near[0], bad[0]]
    for each, value in ((good[0], 0.50), (near[0], 0.46), (bad[0], 0.40)):
        finish(one, each, value)
    assert one.eligible([*good[1:], *near[1:], *bad[1:]]) == [good[1], near[1]]
    # Over two seeds the margin is 0.1 / sqrt(2): 7.1 %. In the mean, near is 8.7 % behind; its second seed is paired.
    finish(one, good[1], 0.50)
    finish(one, near[1], 0.46)
    assert one.eligible([good[2], near[2], *bad[1:]]) == [good[2]]
    told = one.dismissed([near[2], *bad[1:]], last=True)
    assert [each for each, _ in told] == [near[2], *bad[1:]]


def test_without_a_race_all_seeds_start_at_once_and_meet_their_own_kind() -> None:
    first, second, rival = cell(1, memory=101), cell(1, memory=101, seed=2), cell(2, memory=100)
    one = rule([first, second, rival], race=False)
    assert one.eligible([first, second, rival]) == [first, second, rival]
    finish(one, rival, 0.9)
    assert one.record(second, 1, 0.1).pause, "the rival has no second seed"
    assert one.record(first, 1, 0.1).stop, "the rival is far better"


def test_further_seeds_wait_until_every_first_one_has_its_end_or_its_turn() -> None:
    first, second, rival = cell(1, memory=101), cell(1, memory=101, seed=2), cell(2, memory=102)
    one = rule([first, second, rival])
    assert one.record(rival, 1, 0.5).pause
    finish(one, first, 0.5)
    assert one.eligible([second, rival]) == [rival]
    finish(one, rival, 0.5)
    assert one.eligible([second]) == [second]


def test_seeds_are_compared_in_pairs() -> None:
    """A second seed that is lucky for everybody makes no first seed look bad."""
    one_seed, two = cell(1, memory=101), [cell(2, memory=100, seed=seed) for seed in (1, 2)]
    again, third, single = cell(1, memory=101, seed=2), cell(1, memory=101, seed=3), cell(3, memory=100)
    one = rule([one_seed, again, third, *two, single])
    for each, value in ((one_seed, 0.30), (two[0], 0.30), (two[1], 0.90)):
        finish(one, each, value)
    assert one.eligible([again]) == [again]
    finish(one, single, 0.31)
    finish(one, again, 0.89)
    assert one.eligible([third]) == [third], "a rival with one seed is met on that one alone"


def test_the_best_of_each_loss_gets_its_seeds_though_it_is_far_from_the_front() -> None:
    good, best, bad = ([cell(n, memory=100 + n, seed=s, loss=loss) for s in (1, 2, 3)] for n, loss in
                       ((1, "ce"), (2, "cce"), (3, "cce")))  # fmt: skip
    one = rule([*good, *best, *bad])
    for each, value in ((good[0], 0.50), (best[0], 0.30), (bad[0], 0.29)):
        finish(one, each, value)
    assert one.eligible([*good[1:], *best[1:], *bad[1:]]) == [good[1], best[1]]
    # A second seed that does worse than the first is no reason to take the other configuration's word for it.
    finish(one, best[1], 0.20)
    assert one.eligible([*good[1:], best[2], *bad[1:]]) == [good[1], best[2]]
