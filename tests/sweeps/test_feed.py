"""Which cell starts next, with Tune in the hands of the test. Deadlocks first: they are the likeliest mistake."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from seqrec.config import Run
from sweeps import cells, stopping
from sweeps.budget import Budget
from sweeps.cells import Cell
from sweeps.errors import LedgerError
from sweeps.feed import ENDINGS, TRIES, Feed
from sweeps.launch import Launch
from sweeps.ledger import FILE_NAME, Event, read
from sweeps.outcomes import Outcome
from sweeps.spec import SchedulerSpec
from tests.sweeps.crank import Crank, Killed, Message, ended, epoch, started

EPOCHS = 9


def cell(number: int, seed: int = 1, gib: float = 1.0, epochs: int = EPOCHS) -> Cell:
    tree: dict[str, Any] = {
        "data": {"path": "x"},
        "model": {"name": "sasrec", "max_length": number},
        "loss": {"name": "ce"},
        "train": {"epochs": epochs, "seed": seed},
    }
    run = Run.model_validate(tree)
    parameters: dict[str, Any] = {"loss.name": "ce", "model.max_length": number, "train.seed": seed}
    return Cell(*cells.keys(run, "0" * 64), run, parameters, int(gib * 2**30) + number)


def value(one: Cell, number: int) -> float:
    size = one.run.model.max_length
    return 0.1 if size % 4 == 0 else 0.5 + size / 1000 + number / 100 + one.run.train.seed / 1000


def opened(directory: Path, some: list[Cell], name: str = "fifo", **options: Any) -> Launch:
    spec = SchedulerSpec.model_validate({"name": name, **options.pop("scheduler", {})})
    launch = Launch(directory, some, stopping.rule(spec, some), **options)
    launch.open("sweep", "id", cell_keys=[])
    return launch


def events(directory: Path, *kinds: str) -> list[Event]:
    return [event for event, _ in read(directory / FILE_NAME) if event["type"] in kinds]


def fill(slots: int = 2, **shares: float | None) -> dict[str, Any]:
    """Arguments of a feed on a machine without GPUs."""
    return {"slots": lambda share: slots, "shares": dict(shares)}


def calm(one: Cell, share: float) -> Iterator[Message | None]:
    """A training without faults and without a checkpoint."""
    yield started(share=share)
    for number in range(1, one.run.train.epochs + 1):
        yield epoch(number, value(one, number))
    yield ended("done", one.run.train.epochs)


class Hazards:
    """Trainings with checkpoints on GPUs of which some die, are given up, or run out of memory unless alone."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.checkpoints: Counter[str] = Counter()
        self.trained: Counter[tuple[str, int]] = Counter()
        self.held: list[float] = []
        self.most, self.many = 0.0, 0
        """GPUs and trials at a time, at most."""

    def __call__(self, one: Cell, share: float) -> Iterator[Message | None]:
        self.held.append(share)
        self.most, self.many = max(self.most, sum(self.held)), max(self.many, len(self.held))
        try:
            yield from self.train(one, share)
        finally:
            self.held.remove(share)

    def train(self, one: Cell, share: float) -> Iterator[Message | None]:
        key, size = one.cell_key, one.run.model.max_length
        if size % 7 == 0 and self.draw.random() < 0.5:
            yield None
        yield started(self.checkpoints[key], share)
        for number in range(1, EPOCHS + 1):
            if number > self.checkpoints[key]:
                if number == 3 and (size % 5 == 0 or (size % 3 == 0 and share < 1)):
                    yield ended("oom", number - 1, "CUDA out of memory")
                self.checkpoints[key] = number
                self.trained[key, number] += 1
            yield epoch(number, value(one, number))
        yield ended("done", EPOCHS)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["fifo", "asha", "dominance", "pareto_asha"]),
    st.lists(st.integers(0, 80), max_size=3),
    st.sampled_from([(1.0,), (0.125,), (1.0, 0.5, 0.25, 0.125), (0.5, 0.3333)]),
    st.sampled_from([1, 2]),
    st.sampled_from([None, 1, 3]),
    st.integers(0, 1000),
)
def test_whatever_happens_every_cell_ends_once_and_nothing_waits_for_ever(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    crashes: list[int],
    classes: tuple[float, ...],
    gpus: int,
    most: int | None,
    seed: int,
) -> None:
    directory, draw = tmp_path_factory.mktemp("sweep"), random.Random(seed)
    some = [cell(size, s, gib=draw.choice([1, 2, 4, 8])) for size in range(1, 16) for s in (1, 2)]
    shares: dict[str, float | None] = {one.cell_key: draw.choice(classes) for one in some}
    hazards = Hazards(draw)
    for steps in [*crashes, 10**6]:
        launch = opened(directory, some, name)
        known = launch.ledger.state.cells
        given_ = {key: 1.0 if key in known and known[key].alone else share for key, share in shares.items()}
        launch.budget.shares = given_
        feed = Feed(
            launch,
            launch.remaining(),
            slots=lambda share: gpus * int(1 / share + 1e-9),
            shares=given_,
            max_concurrent=most,
        )
        crank = Crank(launch, feed, hazards, draw, steps)
        try:
            crank.run()
        except Killed:
            launch.ledger.close()
            crank.running.clear()
            hazards.held.clear()
        else:
            assert launch.close() == "finished"
    assert hazards.most <= gpus + 1e-6
    assert hazards.many <= (most or len(some))
    final = [event for event in events(directory, "end") if event["outcome"] != "interrupted"]
    assert sorted(event["cell_key"] for event in final) == sorted(one.cell_key for one in some)
    told = Counter((event["cell_key"], event["epoch"]) for event in events(directory, "epoch"))
    assert set(told.values()) == {1}
    assert max(hazards.trained.values()) == 1, "no epoch is trained twice"
    sizes = {one.cell_key: one.run.model.max_length for one in some}
    for event in final:
        if event["outcome"] == "oom":
            assert sizes[event["cell_key"]] % 5 == 0, "what fits alone is not out of memory"


def test_a_promoted_cell_starts_while_another_still_trains(tmp_path: Path) -> None:
    slow, quick = cell(1), cell(2)
    launch = opened(tmp_path, [slow, quick], "pareto_asha")
    crank = Crank(launch, Feed(launch, [slow, quick], **fill()), calm, random.Random(0))
    crank.ask()
    assert crank.order == [slow, quick]
    for one in (slow, quick, quick):
        crank.hear(one)
    assert quick.cell_key in launch.paused
    crank.ask()
    assert crank.order == [slow, quick, quick]
    assert launch.ledger.state.cells[slow.cell_key].running
    crank.run()
    assert launch.outcome(quick.cell_key) is launch.outcome(slow.cell_key) is Outcome.DONE
    launch.close()


def test_nothing_is_handed_over_ahead_of_a_free_place_unless_asked_for(tmp_path: Path) -> None:
    some = [cell(n) for n in range(1, 9)]
    launch = opened(tmp_path, some)
    room = 3
    feed = Feed(launch, some, slots=lambda share: room, shares={})
    assert [feed.next() for _ in range(5)] == [*some[:3], None, None]
    assert not feed.finished
    room = 4
    assert feed.next() == some[3], "a node came"
    room = 2
    feed.over(some[0].cell_key)
    assert feed.next() is None, "nodes went"
    launch.close()
    launch = opened(tmp_path / "ahead", some)
    feed = Feed(launch, some, slots=lambda share: 3, shares={}, ahead=4)
    assert [feed.next() for _ in range(6)] == [*some[:4], None, None], "four that have not begun"
    launch.message(some[0].cell_key, started())
    assert [feed.next(), feed.next()] == [some[4], None]
    launch.close()


def test_where_all_nodes_are_lost_one_cell_waits_for_them(tmp_path: Path) -> None:
    some = [cell(1), cell(2)]
    launch = opened(tmp_path, some)
    feed = Feed(launch, some, slots=lambda share: 0, shares={})
    assert [feed.next(), feed.next()] == [some[0], None]
    assert not feed.finished
    launch.close()


def test_a_cell_that_is_given_up_comes_back_and_then_ends(tmp_path: Path) -> None:
    some = [cell(1), cell(2)]
    launch = opened(tmp_path, some)
    crank = Crank(launch, Feed(launch, some, **fill(1)), lambda one, share: iter([None]), random.Random(0))
    crank.run()
    assert Counter(one.cell_key for one in crank.order) == {one.cell_key: TRIES for one in some}
    assert [launch.outcome(one.cell_key) for one in some] == [Outcome.ERROR] * 2
    launch.close()
    assert {event["reason"] for event in events(tmp_path, "end")} == {"Ray gave the trial up 3 times; see ray.log"}


@pytest.mark.parametrize("stop", ["interrupted", "budget"])
def test_a_launch_that_ends_hands_nothing_over(tmp_path: Path, stop: str) -> None:
    some = [cell(n) for n in range(1, 5)]
    launch = opened(tmp_path, some, "pareto_asha", budget=Budget(wall_s=0.0 if stop == "budget" else None))
    room = 1
    feed = Feed(launch, some, slots=lambda share: room, shares={})
    first = feed.next()
    assert first == some[0]
    launch.message(first.cell_key, started())
    room = 9
    if stop == "interrupted":
        launch.interrupt()
    launch.should_stop()
    assert feed.next() is None
    assert feed.finished
    launch.message(first.cell_key, epoch(1, 0.5))
    feed.over(first.cell_key)
    assert feed.next() is None
    assert launch.close() == stop
    assert {event["outcome"] for event in events(tmp_path, "end")} == {"interrupted"}, "nobody is dismissed for that"


def test_who_is_dismissed_ends_while_others_train_some_at_a_time(tmp_path: Path) -> None:
    """Each is better than those before it and takes less memory: all of them pause, and the last one alone goes on."""
    *many, best = [cell(size, gib=8) for size in range(61, 0, -1)]
    launch = opened(tmp_path, [*many, best], "pareto_asha", scheduler={"margin": 0.0})
    feed = Feed(launch, [*many, best], slots=lambda share: 1, shares={})
    for one in (*many, best):
        assert feed.next() == one
        launch.message(one.cell_key, started())
        launch.message(one.cell_key, epoch(1, 1 - one.run.model.max_length / 100))
        feed.over(one.cell_key)
    stopped = []
    for _ in range(4):
        feed.next()
        stopped.append(sum(launch.outcome(one.cell_key) is Outcome.STOPPED for one in many))
    assert stopped == [0, ENDINGS, 2 * ENDINGS, 60]
    launch.close()


def test_a_limit_leaves_nobody_dismissed_without_an_end(tmp_path: Path) -> None:
    """Though the limit keeps cells out that have yet to run."""
    *many, best = [cell(size, gib=8) for size in range(201, 0, -1)]
    launch = opened(tmp_path, [*many, best, cell(202)], "pareto_asha", scheduler={"margin": 0.0})
    feed = Feed(launch, [*many, best], slots=lambda share: 1, shares={})

    def script(one: Cell, share: float) -> Iterator[Message | None]:
        yield started()
        yield epoch(1, 1 - one.run.model.max_length / 1000)
        yield epoch(2, 1.0)
        yield ended("done", 2)

    Crank(launch, feed, script, random.Random(0)).run()
    assert {launch.outcome(one.cell_key) for one in many} == {Outcome.STOPPED}
    launch.close()


def test_a_disk_that_is_full_when_a_dismissal_is_written_ends_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse, better = cell(2, gib=8), cell(1, gib=8)
    launch = opened(tmp_path, [worse, better], "pareto_asha", scheduler={"margin": 0.0})
    feed = Feed(launch, [worse, better], slots=lambda share: 1, shares={})
    for one in (worse, better):
        assert feed.next() == one
        launch.message(one.cell_key, started())
        launch.message(one.cell_key, epoch(1, 1 - one.run.model.max_length / 100))
        feed.over(one.cell_key)
    assert feed.next() == better

    def no_room(file: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_room)
        assert feed.next() is None
    assert feed.finished
    assert launch.stopping == "halted"
    with pytest.raises(LedgerError, match="No space left"):
        launch.close()
