"""In which order the feed hands cells over, and at what cost: as the simulator, by share, asking the rule rarely."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from sweeps import replay, stopping
from sweeps.cells import Cell
from sweeps.feed import STUCK_S, WINDOW, Feed
from sweeps.pareto_asha import ParetoAsha
from sweeps.race import Race
from sweeps.replay import Recorded
from sweeps.spec import SchedulerSpec
from sweeps.verdicts import Rule, Verdict
from tests.sweeps.crank import Crank, ended, epoch, started
from tests.sweeps.test_feed import EPOCHS, calm, cell, opened, value


class Diary:
    """A rule that writes down what it is told and how often it is asked."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.entries: list[tuple[Any, ...]] = []
        self.asked = 0

    @property
    def stale(self) -> bool:
        return self.rule.stale

    def started(self, one: Cell) -> None:
        self.entries.append(("start", one.cell_key))
        self.rule.started(one)

    def record(self, one: Cell, number: int, said: float | None) -> Verdict:
        verdict = self.rule.record(one, number, said)
        self.entries.append((one.cell_key, number, verdict))
        return verdict

    def ended(self, one: Cell, result: float | None) -> None:
        self.rule.ended(one, result)

    def reopened(self, one: Cell) -> None:
        self.rule.reopened(one)

    def eligible(self, waiting: Sequence[Cell]) -> list[Cell]:
        self.asked += 1
        return self.rule.eligible(waiting)

    def dismissed(self, waiting: Sequence[Cell], *, last: bool) -> list[tuple[Cell, str]]:
        return self.rule.dismissed(waiting, last=last)


def curve(one: Cell) -> tuple[float, ...]:
    """Noisy, but the same whenever it is asked for."""
    draw = random.Random(one.cell_key)
    return tuple(value(one, number) * draw.uniform(0.7, 1.0) for number in range(1, EPOCHS + 1))


class Trainer:
    """Trains at once what is not in its checkpoint; its result is the best of its curve, as the ledger's."""

    def __init__(self) -> None:
        self.checkpoints: dict[str, int] = {}

    def __call__(self, one: Cell, share: float) -> Any:
        yield started(self.checkpoints.get(one.cell_key, 0), share)
        for number, said in enumerate(curve(one), start=1):
            self.checkpoints[one.cell_key] = max(number, self.checkpoints.get(one.cell_key, 0))
            yield epoch(number, said)
        yield ended("done", EPOCHS, **{"best/ndcg_at_10": max(curve(one))})


@pytest.mark.parametrize("name", ["fifo", "asha", "dominance", "pareto_asha"])
@pytest.mark.parametrize("seed", range(6))
def test_on_one_worker_the_driver_decides_as_the_simulator(tmp_path: Path, name: str, seed: int) -> None:
    """Every start, every epoch and every verdict, in their order; the simulator shuffles as the search space asks."""
    some = [cell(size, s, gib=1 + size % 5) for size in range(1, 25) for s in (1, 2)]
    spec = SchedulerSpec.model_validate({"name": name, "shuffle_seed": seed})
    told, simulated = (Diary(stopping.rule(spec, some)) for _ in range(2))
    launch = opened(tmp_path, some)
    launch.rule = told
    shuffled = list(some)
    random.Random(seed).shuffle(shuffled)
    crank = Crank(launch, Feed(launch, shuffled, slots=lambda share: 1, shares={}), Trainer(), random.Random(0))
    crank.run()
    launch.close()
    source = [Recorded(one, max(curve(one)), 1.0, (1.0,) * EPOCHS, curve(one)) for one in some]
    finished, epochs, _ = replay.run(source, simulated, workers=1, noise=0.0, seed=seed)
    assert told.entries == simulated.entries
    assert {key for key, one in launch.ledger.state.cells.items() if one.outcome == "done"} == finished
    assert sum(one.epochs for one in launch.ledger.state.cells.values()) == epochs


@pytest.mark.parametrize("name", ["fifo", "asha", "pareto_asha"])
def test_the_rule_is_asked_a_few_times_a_rung_however_many_cells_there_are(tmp_path: Path, name: str) -> None:
    asked = []
    for count in (60, 240):
        some = [cell(size, gib=1 + size % 7) for size in range(1, count + 1)]
        launch = opened(tmp_path / str(count), some, name)
        diary = launch.rule = Diary(launch.rule)
        feed = Feed(launch, some, slots=lambda share: 4, shares={})
        Crank(launch, feed, Trainer(), random.Random(count)).run()
        launch.close()
        asked.append(diary.asked)
    rungs, slots = 3, 4
    assert max(asked) <= 2 + 2 * rungs * slots, "each that is still out when a rung is promoted may change what is next"


class Shadowed(Diary):
    """A rule with a second one that is told the same and asked before every start, whatever the first one says."""

    def __init__(self, rule: Rule, shadow: Rule) -> None:
        super().__init__(rule)
        self.shadow = shadow

    def started(self, one: Cell) -> None:
        super().started(one)
        self.shadow.started(one)

    def record(self, one: Cell, number: int, said: float | None) -> Verdict:
        self.shadow.record(one, number, said)
        return super().record(one, number, said)

    def ended(self, one: Cell, result: float | None) -> None:
        super().ended(one, result)
        self.shadow.ended(one, result)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["fifo", "pareto_asha"]), st.integers(0, 10**6), st.integers(1, 5))
def test_who_starts_is_always_the_best_of_that_moment(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, workers: int
) -> None:
    """Though the rule is asked rarely; and no place stays free that somebody may have. Some trials are given up."""
    draw = random.Random(seed)
    some = [cell(size, s, gib=draw.uniform(1, 9)) for size in range(1, 14) for s in (1, 2)]
    launch = opened(tmp_path_factory.mktemp("sweep"), some, name, scheduler={"keep": 0.6})
    spec = SchedulerSpec.model_validate({"name": name, "keep": 0.6})
    rule = launch.rule = Shadowed(launch.rule, stopping.rule(spec, some))
    feed = Feed(launch, some, slots=lambda share: workers, shares={})
    dropped = {one.cell_key for one in some if draw.random() < 0.2}
    trainer = Trainer()

    def script(one: Cell, share: float) -> Any:
        if one.cell_key in dropped:
            dropped.discard(one.cell_key)
            return iter([started(), None])
        return trainer(one, share)

    class Watched(Crank):
        def ask(self) -> None:
            while len(feed.out) < workers:
                best = rule.shadow.eligible(list(feed.waiting.values()))[:1]
                one = feed.next()
                assert ([one] if one else []) == best
                if one is None:
                    return
                self.running.append((one, script(one, 0.0)))
            assert feed.next() is None

    Watched(launch, feed, script, draw).run()
    launch.close()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_the_race_is_that_of_every_pair(seed: int) -> None:
    draw = random.Random(seed)
    some = [cell(size, s, gib=draw.randint(1, 6)) for size in range(1, 9) for s in (1, 2, 3)]
    rule = ParetoAsha(stopping.rule(SchedulerSpec(name="pareto_asha"), some).settings, some)
    for one in some:
        if draw.random() < 0.6:
            rule.ended(one, draw.choice([None, draw.randint(50, 60) / 60]))
    results = rule._results()
    race = Race(results)
    for one in some:
        if one.configuration_key not in results:
            continue
        own, worse = results[one.configuration_key][1], False
        for memory, theirs in results.values():
            shared = own.keys() & theirs.keys()
            if shared and memory <= one.predicted_bytes:
                allowed = (1 + 0.03 / len(shared) ** 0.5) * sum(own[i] for i in shared)
                worse = worse or sum(theirs[i] for i in shared) > allowed
        assert race.could_be_on_the_front(one, 0.03) is not worse


# ------------------------------------------------------------------------------------------------------------ by share


def on_gpus(count: int) -> Any:
    return lambda share: count * int(1 / share + 1e-9)


def test_a_free_worker_gets_its_like_for_as_long_as_there_is_one_among_the_best(tmp_path: Path) -> None:
    draw = random.Random(1)
    some = [cell(size, epochs=1) for size in range(1, 201)]
    shares: dict[str, float | None] = {one.cell_key: draw.choice((1.0, 0.5, 0.125)) for one in some}
    launch = opened(tmp_path, some)
    feed = Feed(launch, some, slots=on_gpus(1), shares=shares)
    crank = Crank(launch, feed, calm, draw)
    crank.run()
    launch.close()
    row = [shares[one.cell_key] for one in crank.order]
    changes = sum(one != other for one, other in itertools.pairwise(row))
    asked = [shares[one.cell_key] for one in some]
    assert sum(one != other for one, other in itertools.pairwise(asked)) > 100
    assert changes < len(some) / 4
    late = max(crank.order.index(one) - place for place, one in enumerate(some))
    assert late < 10 * WINDOW, "and nobody waits until the end for that"


def test_a_large_cell_whose_room_is_in_pieces_gets_it(tmp_path: Path) -> None:
    """Half of each of two GPUs is free. While the whole one that was asked for is held up, halves go on for a while."""
    small, other, large, *more = some = [cell(size) for size in range(1, 9)]
    shares: dict[str, float | None] = dict.fromkeys((one.cell_key for one in some), 0.5) | {large.cell_key: 1.0}
    now = 0.0
    launch = opened(tmp_path, some)
    feed = Feed(launch, some, slots=on_gpus(2), shares=shares, clock=lambda: now)
    assert [feed.next() for _ in range(4)] == [small, other, large, None]
    launch.message(small.cell_key, started(share=0.5))
    launch.message(other.cell_key, started(share=0.5))

    def end(one: Cell) -> None:
        launch.message(one.cell_key, ended("done", 1))
        feed.over(one.cell_key)

    now = STUCK_S
    end(small)
    assert feed.next() == more[0]
    launch.message(more[0].cell_key, started(share=0.5))
    now = STUCK_S + 1
    end(more[0])
    assert feed.next() is None, "else there would never be a whole one"
    launch.message(large.cell_key, started(share=1.0))
    assert feed.next() == more[1]
    end(other)
    end(more[1])
    launch.close()


def test_a_held_up_request_keeps_nobody_back_where_nothing_runs(tmp_path: Path) -> None:
    """The GPU is somebody else's; what is smaller may fit beside it."""
    large, small, other = some = [cell(1), cell(2), cell(3)]
    now = 0.0
    launch = opened(tmp_path, some)
    shares: dict[str, float | None] = {large.cell_key: 0.5, small.cell_key: 0.25, other.cell_key: 0.25}
    feed = Feed(launch, some, slots=on_gpus(1), shares=shares, clock=lambda: now)
    assert [feed.next(), feed.next()] == [large, small]
    now = 2 * STUCK_S
    assert feed.next() == other
    launch.close()


def test_shares_of_a_gpu_and_cores_are_both_room(tmp_path: Path) -> None:
    some = [cell(size) for size in range(1, 9)]
    shares: dict[str, float | None] = {one.cell_key: 0.5 if i < 2 else 0.1666 for i, one in enumerate(some)}
    launch = opened(tmp_path, some)
    feed = Feed(launch, some, slots=on_gpus(1), shares=shares)
    assert [feed.next() for _ in range(3)] == [*some[:2], None]
    launch.message(some[0].cell_key, started(share=0.5))
    launch.message(some[0].cell_key, ended("done", 1))
    feed.over(some[0].cell_key)
    assert [feed.next() for _ in range(4)] == [*some[2:5], None], "three sixths beside a half"
    launch.close()
