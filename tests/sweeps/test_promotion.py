"""Cells that wait at a rung, as the launch and the driver see them: put off, promoted, dismissed, through crashes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from seqrec.config import Data, Run
from seqrec.data.tables import Statistics
from sweeps import cells, cluster, execute, stopping, tuning
from sweeps.cells import Cell
from sweeps.feed import Feed
from sweeps.launch import Launch
from sweeps.ledger import FILE_NAME, Event, read
from sweeps.options import Options
from sweeps.outcomes import Outcome
from sweeps.reuse import Finished
from sweeps.space import Plan
from sweeps.spec import Budget, Resources, SchedulerSpec, SweepSpec
from tests.sweeps.crank import Crank, Killed, Message, ended, started

NDCG = "valid/ndcg_at_10"
EPOCHS = 9
STATISTICS = Statistics("beauty", "0" * 64, 10, 100, 20, 10, ((10, 10),))
SPEC = SchedulerSpec(name="pareto_asha", shuffle_seed=None)


def cell(number: int, seed: int = 1) -> Cell:
    tree: dict[str, Any] = {
        "data": {"path": "amazon_beauty_5core"},
        "model": {"name": "sasrec", "max_length": number},
        "loss": {"name": "ce"},
        "train": {"epochs": EPOCHS, "seed": seed},
    }
    run = Run.model_validate(tree)
    parameters: dict[str, Any] = {"loss.name": "ce", "model.max_length": number, "train.seed": seed}
    return Cell(*cells.keys(run, "0" * 64), run, parameters, 2**30 + number)


CELLS = [cell(size, seed) for size in range(1, 9) for seed in (1, 2)]


def quality(one: Cell, epoch: int) -> float:
    """Cells of more memory are better, but for three: two are hopeless, and one shows it only at the second rung."""
    size = one.run.model.max_length
    if size in (4, 5):
        return 0.1
    if size == 6 and epoch >= 3:
        return 0.2
    return 0.5 + size / 1000 + epoch / 100 + one.run.train.seed / 1000


def opened(directory: Path, some: list[Cell] = CELLS) -> Launch:
    launch = Launch(directory, some, stopping.rule(SPEC, some))
    launch.open("sweep", "id", cell_keys=[])
    return launch


def start(launch: Launch, one: Cell, from_epoch: int = 0) -> bool:
    return launch.message(
        one.cell_key, {"kind": "start", "node": "n", "pid": 1, "from_epoch": from_epoch, "gpu_share": 0.0}
    )


def epoch(launch: Launch, one: Cell, number: int, value: float) -> bool:
    return launch.message(one.cell_key, {"kind": "epoch", "epoch": number, "metrics": {NDCG: value}})


def events(directory: Path, kind: str) -> list[Event]:
    return [event for event, _ in read(directory / FILE_NAME) if event["type"] == kind]


def test_a_paused_cell_has_no_end_and_is_not_heard_until_it_starts_again(tmp_path: Path) -> None:
    one, other = CELLS[0], CELLS[2]
    launch = opened(tmp_path, [one, other])
    start(launch, one)
    assert epoch(launch, one, 1, 0.5)
    assert epoch(launch, one, 2, 0.6), "training may be an epoch ahead of the driver's word"
    assert launch.message(one.cell_key, {"kind": "end", "outcome": "done", "reason": "", "epochs": 9, "metrics": {}})
    assert launch.outcome(one.cell_key) is None
    assert launch.eligible([one, other]) == [other]
    start(launch, other)
    assert epoch(launch, other, 1, 0.1)
    assert launch.outcome(other.cell_key) is Outcome.STOPPED
    assert launch.eligible([one, other]) == [one]
    assert not start(launch, one, 2)
    assert not epoch(launch, one, 1, 0.5), "a replay"
    assert not epoch(launch, one, 2, 0.6)
    assert epoch(launch, one, 3, 0.7)
    launch.close()
    assert [(event["cell_key"], event["epoch"]) for event in events(tmp_path, "epoch")] == [
        (one.cell_key, 1),
        (other.cell_key, 1),
        (one.cell_key, 2),
        (one.cell_key, 3),
    ]
    assert [event["outcome"] for event in events(tmp_path, "end")] == ["interrupted", "stopped", "interrupted"]


def test_what_was_promoted_when_the_crash_came_goes_on_first(tmp_path: Path) -> None:
    one, other, new = CELLS[0], CELLS[2], CELLS[4]
    launch = opened(tmp_path, [one, other, new])
    for each in (one, other):
        start(launch, each)
        assert epoch(launch, each, 1, 0.5)
    start(launch, other, 1)
    launch.ledger.close()
    again = opened(tmp_path, [one, other, new])
    assert again.eligible([one, other, new]) == [other, new], "the other waits until there is nothing new"
    again.close()


def test_a_value_that_is_no_number_ends_the_cell_as_diverged(tmp_path: Path) -> None:
    launch = opened(tmp_path)
    start(launch, CELLS[0])
    assert epoch(launch, CELLS[0], 1, float("nan"))
    launch.close()
    [end] = events(tmp_path, "end")
    assert (end["outcome"], end["reason"]) == ("diverged", f"{NDCG} is not a number at epoch 1")


class Workers:
    """In the place of Ray: two workers with the trainer's checkpoints, one written before each epoch is reported; after
    `steps` messages the driver is gone, as after kill -9."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.checkpoints: Counter[str] = Counter()
        self.trained: Counter[str] = Counter()
        self.order: list[Cell] = []
        self.steps = 10**6

    def fit(self, launch: Launch, feed: Feed, *_: Any, **options: Any) -> None:
        crank = Crank(launch, feed, self._trial, self.draw, self.steps)
        try:
            crank.run()
        finally:
            self.order += crank.order

    def _trial(self, one: Cell, share: float) -> Iterator[Message]:
        done = self.checkpoints[one.cell_key]
        yield started(done)
        for number in range(1, EPOCHS + 1):
            if number > done:
                self.trained[one.cell_key] += 1
                self.checkpoints[one.cell_key] = number
            yield {"kind": "epoch", "epoch": number, "metrics": {NDCG: quality(one, number)}}
        yield ended("done", EPOCHS)


def sweep(directory: Path, workers: Workers) -> dict[str, Outcome | None]:
    """One launch as `execute` drives it; how every cell ended."""
    launch = opened(directory)
    workers.fit(launch, Feed(launch, CELLS, slots=lambda share: 2, shares={}))
    launch.close()
    return {one.cell_key: launch.outcome(one.cell_key) for one in CELLS}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=3), st.integers(0, 1000))
def test_whatever_crashes_every_cell_ends_as_without_them(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[int], seed: int
) -> None:
    directory, workers = tmp_path_factory.mktemp("sweep"), Workers(seed)
    for steps in crashes:
        workers.steps = steps
        launch = opened(directory)
        with suppress(Killed):
            workers.fit(launch, Feed(launch, CELLS, slots=lambda share: 2, shares={}))
        launch.ledger.close()
    workers.steps = 10**6
    after = sweep(directory, workers)
    calm = sweep(tmp_path_factory.mktemp("calm"), Workers(seed))
    assert after == calm
    assert sorted(calm.values(), key=str) == ["done"] * 10 + ["stopped"] * 6
    assert max(workers.trained.values()) == EPOCHS, "no epoch is trained twice"
    told = Counter((event["cell_key"], event["epoch"]) for event in events(directory, "epoch"))
    assert set(told.values()) == {1}


def test_the_driver_promotes_lower_rungs_first_and_starts_replicates_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Any
) -> None:
    workers = Workers(0)
    _no_ray(monkeypatch, workers)
    plan = Plan(tuple(CELLS), 0, (), (), STATISTICS, "somewhere.parquet")
    assert execute.run(space(SPEC), plan, Options(storage=tmp_path, no_tracking=True, quiet=True)) == 0
    sizes = [(one.run.model.max_length, one.run.train.seed) for one in workers.order]
    assert sizes[:8] == [(size, 1) for size in range(1, 9)]
    first = [size for size, seed in sizes if seed == 1]
    assert Counter(first) == {1: 3, 2: 3, 3: 3, 4: 1, 5: 1, 6: 2, 7: 3, 8: 3}
    assert max(place for place, (_, seed) in enumerate(sizes) if seed == 1) < min(
        place for place, (_, seed) in enumerate(sizes) if seed == 2
    )
    assert len(events(tmp_path / "s", "end")) > len(CELLS)
    assert events(tmp_path / "s", "close")[0]["remaining"] == 0


def test_a_limit_on_trials_never_strands_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Any) -> None:
    workers = Workers(0)
    _no_ray(monkeypatch, workers)
    plan = Plan(tuple(CELLS), 0, (), (), STATISTICS, "somewhere.parquet")
    options = Options(storage=tmp_path, no_tracking=True, quiet=True, limit_trials=3)
    for _ in range(len(CELLS)):
        assert execute.run(space(SPEC), plan, options) == 0
        if events(tmp_path / "s", "close")[-1]["remaining"] == 0:
            break
    ends = _last_ends(tmp_path)
    assert sorted(event["cell_key"] for event in ends) == sorted(one.cell_key for one in CELLS)


def test_what_waits_under_a_limit_waits_for_the_cells_that_the_limit_keeps_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Any
) -> None:
    """Three of equal memory run first, of which one passes the rung. The others may pass when more have arrived."""
    _no_ray(monkeypatch, Workers(0))
    alike = [replace(one, predicted_bytes=2**30) for one in CELLS if one.run.train.seed == 1]
    plan = Plan(tuple(alike), 0, (), (), STATISTICS, "somewhere.parquet")
    some = space(SPEC.model_copy(update={"keep": 0.3}))
    options = Options(storage=tmp_path, no_tracking=True, quiet=True, limit_trials=3)
    assert execute.run(some, plan, options) == 0
    assert [(event["cell_key"], event["outcome"]) for event in _last_ends(tmp_path)] == [(alike[2].cell_key, "done")]
    for _ in alike:
        assert execute.run(some, plan, options) == 0
    assert events(tmp_path / "s", "close")[-1]["remaining"] == 0
    assert len(_last_ends(tmp_path)) == len(alike)


def _last_ends(tmp_path: Path) -> list[Event]:
    return [event for event in events(tmp_path / "s", "end") if event["outcome"] != "interrupted"]


def _no_ray(monkeypatch: pytest.MonkeyPatch, workers: Workers) -> None:
    class Session:
        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(cluster, "session", lambda address, **options: Session())
    monkeypatch.setattr(cluster, "check", lambda cpus, gpus: None)
    monkeypatch.setattr(cluster, "slots", lambda cpus, gpus: 2)
    monkeypatch.setattr(tuning, "fit", workers.fit)
    monkeypatch.setattr("seqrec.data.load", lambda run_data: None)
    monkeypatch.setattr("sweeps.facts.data_bytes", lambda split: 0)


@pytest.fixture
def space() -> Any:
    def made(scheduler: SchedulerSpec) -> SweepSpec:
        return SweepSpec(
            source="s.yaml",
            text="name: s",
            name="s",
            description="",
            data=Data(path="amazon_beauty_5core"),
            fixed={},
            blocks=(),
            seeds=(1,),
            aliases={},
            objectives=((NDCG, "max"), ("memory/predicted_gib", "min")),
            scheduler=scheduler,
            resources=Resources(),
            budget=Budget(),
            overrides=(),
        )

    return made


def test_a_failure_tried_again_is_open_for_the_rule_too_and_in_the_next_launch(tmp_path: Path) -> None:
    rule, again = (stopping.rule(SPEC, CELLS) for _ in range(2))
    launch = Launch(tmp_path, CELLS, rule)
    launch.open("sweep", "id", cell_keys=[])
    launch.message(CELLS[0].cell_key, {"kind": "start", "node": "here", "pid": 1, "from_epoch": 0, "gpu_share": 0.0})
    launch.lost(CELLS[0].cell_key, "boom", outcome=Outcome.ERROR)
    assert CELLS[0] not in launch.eligible(CELLS)
    assert CELLS[0].cell_key in rule.over
    launch.retry(CELLS)
    assert CELLS[0] in launch.eligible(CELLS)
    assert CELLS[0].cell_key not in rule.over
    launch.close()
    Launch(tmp_path, CELLS, again).close()
    assert CELLS[0].cell_key not in again.over


def test_a_cell_taken_over_is_a_rival_now_and_in_the_next_launch(tmp_path: Path) -> None:
    rule, again = (stopping.rule(SPEC, CELLS) for _ in range(2))
    launch = Launch(tmp_path, CELLS, rule)
    launch.open("sweep", "id", cell_keys=[])
    epochs = tuple({NDCG: 0.9} for _ in range(EPOCHS))
    launch.adopt(CELLS[0].cell_key, Finished(Outcome.DONE, "", epochs, {"best/ndcg_at_10": 0.9}, {"name": "other"}))
    launch.close()
    Launch(tmp_path, CELLS, again).close()
    assert rule.over == again.over == {CELLS[0].cell_key: 0.9}
