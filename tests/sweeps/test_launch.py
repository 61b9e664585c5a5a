"""One launch's bookkeeping, fed by hand: what Ray would report, in every order in which things can go wrong."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from seqrec.config import Run
from sweeps import cells, stopping
from sweeps.budget import Budget
from sweeps.cells import Cell
from sweeps.errors import LedgerError
from sweeps.launch import Launch
from sweeps.ledger import FILE_NAME, Event, read
from sweeps.outcomes import Outcome
from sweeps.spec import SchedulerSpec

NDCG = "valid/ndcg_at_10"
EPOCHS = 4


def cell(batch_size: int) -> Cell:
    tree: dict[str, Any] = {
        "data": {"path": "x"},
        "model": {"name": "sasrec"},
        "loss": {"name": "ce"},
        "train": {"batch_size": batch_size, "epochs": EPOCHS},
    }
    run = Run.model_validate(tree)
    parameters: dict[str, Any] = {"loss.name": "ce", "train.batch_size": batch_size, "train.seed": run.train.seed}
    return Cell(*cells.keys(run, "0" * 64), run, parameters, 2**30)


CELLS = [cell(n) for n in range(1, 9)]


def opened(directory: Path, some: list[Cell] = CELLS, scheduler: str = "asha", **options: Any) -> Launch:
    spec = SchedulerSpec.model_validate({"name": scheduler})
    launch = Launch(directory, some, stopping.rule(spec, some), **options)
    launch.open("sweep", "id", cell_keys=[one.cell_key for one in some])
    return launch


def start(launch: Launch, one: Cell, from_epoch: int = 0) -> bool:
    return launch.message(
        one.cell_key, {"kind": "start", "node": "n", "pid": 1, "from_epoch": from_epoch, "gpu_share": 0.0}
    )


def epoch(launch: Launch, one: Cell, number: int, value: float = 0.5) -> bool:
    return launch.message(one.cell_key, {"kind": "epoch", "epoch": number, "metrics": {NDCG: value}})


def end(launch: Launch, one: Cell, outcome: str = "done", metrics: Mapping[str, float] | None = None) -> bool:
    message = {"kind": "end", "outcome": outcome, "reason": "", "epochs": EPOCHS, "metrics": dict(metrics or {})}
    return launch.message(one.cell_key, message)


def events(directory: Path, *types: str) -> list[Event]:
    return [event for event, _ in read(directory / FILE_NAME) if not types or event["type"] in types]


def test_the_life_of_a_cell(tmp_path: Path) -> None:
    ended: list[str] = []
    launch = opened(tmp_path, CELLS[:1], on_end=ended.append)
    assert not start(launch, CELLS[0])
    assert not epoch(launch, CELLS[0], 1)
    assert ended == []
    assert end(launch, CELLS[0], metrics={"test/ndcg_at_10": 0.4})
    assert ended == [CELLS[0].cell_key]
    assert launch.close() == "finished"
    assert [event["type"] for event in events(tmp_path)] == ["sweep", "plan", "cell", "start", "epoch", "end", "close"]
    last = events(tmp_path, "end")[0]
    assert (last["outcome"], last["attempt"], last["epochs"]) == ("done", 1, EPOCHS)
    assert last["metrics"] == {
        "memory/predicted_gib": 1.0,
        "best/epoch": 1.0,
        "best/ndcg_at_10": 0.5,
        "test/ndcg_at_10": 0.4,
    }
    assert events(tmp_path, "close")[0]["remaining"] == 0


def test_a_bad_cell_is_stopped_and_its_late_reports_are_dropped(tmp_path: Path) -> None:
    good, bad = CELLS[:2]
    launch = opened(tmp_path, CELLS[:2])
    start(launch, good)
    epoch(launch, good, 1, 0.9)
    start(launch, bad)
    assert epoch(launch, bad, 1, 0.1)
    assert epoch(launch, bad, 2, 0.95)
    assert end(launch, bad)
    launch.close()
    ends = {event["cell_key"]: event for event in events(tmp_path, "end")}
    assert ends[bad.cell_key]["outcome"] == "stopped"
    assert "0.1 at epoch 1 is below 0.9" in ends[bad.cell_key]["reason"]
    assert ends[bad.cell_key]["metrics"]["best/ndcg_at_10"] == 0.1
    assert len(events(tmp_path, "epoch")) == 2


def test_a_retried_cell_replays_without_doubles(tmp_path: Path) -> None:
    one, ended = CELLS[0], []
    launch = opened(tmp_path, [one], on_end=ended.append)
    start(launch, one)
    epoch(launch, one, 1)
    epoch(launch, one, 2)
    launch.lost(one.cell_key, "ActorDiedError", outcome=Outcome.INTERRUPTED)
    assert ended == [], "its checkpoint is still needed"
    start(launch, one, from_epoch=1)
    assert not epoch(launch, one, 1)
    assert not epoch(launch, one, 2)
    assert not epoch(launch, one, 3)
    end(launch, one)
    launch.close()
    assert [(e["attempt"], e["epoch"]) for e in events(tmp_path, "epoch")] == [(1, 1), (1, 2), (2, 3)]
    assert [(e["attempt"], e["outcome"]) for e in events(tmp_path, "end")] == [(1, "interrupted"), (2, "done")]


def test_a_process_that_dies_before_its_first_word_still_ends_its_cell(tmp_path: Path) -> None:
    launch = opened(tmp_path, CELLS[:1])
    launch.lost(CELLS[0].cell_key, "no such module", outcome=Outcome.ERROR)
    assert launch.close() == "finished"
    assert [event["type"] for event in events(tmp_path)][2:] == ["cell", "end", "close"]
    assert events(tmp_path, "end")[0]["attempt"] == 1


def test_an_interrupted_launch_tells_which_cells_were_cut_off(tmp_path: Path) -> None:
    launch = opened(tmp_path)
    start(launch, CELLS[0])
    epoch(launch, CELLS[0], 1)
    assert not launch.should_stop()
    launch.interrupt()
    assert launch.should_stop()
    assert epoch(launch, CELLS[0], 2), "a report on the way is taken, and its trial stopped"
    assert launch.close() == "interrupted"
    assert [event["outcome"] for event in events(tmp_path, "end")] == ["interrupted"]
    assert events(tmp_path, "close")[0]["remaining"] == len(CELLS)
    again = opened(tmp_path)
    assert len(again.remaining()) == len(CELLS)
    start(again, CELLS[0], from_epoch=2)
    end(again, CELLS[0])
    again.close()
    assert [event["attempt"] for event in events(tmp_path, "start")] == [1, 2]
    assert [event["launch"] for event in events(tmp_path, "plan")] == [1, 2]
    assert len(events(tmp_path, "sweep")) == 1


def test_a_launch_over_its_time_closes_as_budget(tmp_path: Path) -> None:
    launch = opened(tmp_path, budget=Budget(wall_s=0.0))
    assert launch.should_stop()
    assert launch.close() == "budget"


def test_a_launch_that_was_never_opened_writes_nothing(tmp_path: Path) -> None:
    launch = Launch(tmp_path, CELLS, stopping.Fifo())
    launch.close()
    assert events(tmp_path) == []


def test_a_cell_that_was_judged_before_the_crash_is_ended_after_it(tmp_path: Path) -> None:
    good, bad = CELLS[:2]
    launch = opened(tmp_path, CELLS[:2])
    for one, value in ((good, 0.9), (bad, 0.1)):
        start(launch, one)
        epoch(launch, one, 1, value)
    launch.ledger.close()
    lines = (tmp_path / FILE_NAME).read_bytes().splitlines(keepends=True)
    assert b'"stopped"' in lines[-1]
    (tmp_path / FILE_NAME).write_bytes(b"".join(lines[:-1]))
    again = opened(tmp_path, CELLS[:2])
    assert again.remaining() == [good]
    again.close()
    assert [event["outcome"] for event in events(tmp_path, "end")] == ["stopped"]


def test_a_full_disk_stops_the_launch_and_the_next_one_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = opened(tmp_path, CELLS[:2])
    start(launch, CELLS[0])

    def no_room(file: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_room)
        assert epoch(launch, CELLS[0], 1), "the trial is told to stop"
        assert launch.should_stop()
        with pytest.raises(LedgerError, match="No space left"):
            launch.close()
    again = opened(tmp_path, CELLS[:2], "fifo")
    for one in CELLS[:2]:
        start(again, one)
        for number in range(1, EPOCHS + 1):
            epoch(again, one, number)
        end(again, one)
    assert again.close() == "finished"
    assert Counter(event["outcome"] for event in events(tmp_path, "end")) == {"done": 2}
    assert len(events(tmp_path, "epoch")) == 2 * EPOCHS


def test_cells_of_an_older_plan_are_left_alone(tmp_path: Path) -> None:
    launch = opened(tmp_path, CELLS[:2])
    start(launch, CELLS[0])
    epoch(launch, CELLS[0], 1, 0.9)
    launch.close()
    other = opened(tmp_path, CELLS[1:3])
    assert other.remaining() == CELLS[1:3]
    start(other, CELLS[1])
    assert not epoch(other, CELLS[1], 1, 0.1), "a cell that is no longer planned is no rival"
    assert other.snapshot().total == 2
    other.close()


def test_the_snapshot(tmp_path: Path) -> None:
    launch = opened(tmp_path, scheduler="fifo")
    launch.allowed = len(CELLS)
    for one, value in ((CELLS[0], 0.3), (CELLS[1], 0.6), (CELLS[2], 0.1)):
        start(launch, one)
        epoch(launch, one, 1, value)
    end(launch, CELLS[0])
    end(launch, CELLS[2], "oom")
    seen = launch.snapshot()
    launch.close()
    assert (seen.total, seen.ended, seen.counts) == (len(CELLS), 2, {Outcome.DONE: 1, Outcome.OOM: 1})
    assert seen.running == ((CELLS[1].label, 1, EPOCHS),)
    assert seen.best == (CELLS[1].label, 0.6)
    assert seen.eta_s == pytest.approx(seen.elapsed_s / 2 * 6)


def quality(one: Cell, number: int) -> float:
    return one.run.train.batch_size / 10 + number / 100


def simulate(directory: Path, crashes: list[int], scheduler: str, order: random.Random) -> None:
    """Launch after launch over all cells on two slots, each but the last cut off after so many messages. Training is as
    the trainer's: a checkpoint after every epoch, written before the epoch is reported, and replayed on resuming."""
    checkpoints: Counter[str] = Counter()
    for steps in [*crashes, 10**6]:
        spec = SchedulerSpec.model_validate({"name": scheduler})
        launch = Launch(directory, CELLS, stopping.rule(spec, CELLS))
        launch.open("sweep", "id", cell_keys=[])
        waiting, running = stopping.order(spec, launch.remaining()), []
        for _ in range(steps):
            while waiting and len(running) < 2:
                one = waiting.pop(0)
                running.append((one, trial(one, checkpoints)))
            if not running:
                break
            place = order.randrange(len(running))
            one, messages = running[place]
            if launch.message(one.cell_key, next(messages)):
                running.pop(place)
        if steps < 10**6:
            launch.ledger.close()  # as kill -9 leaves it: no ends, no close
        else:
            assert launch.close() == "finished"


def trial(one: Cell, checkpoints: Counter[str]) -> Any:
    done = checkpoints[one.cell_key]
    yield {"kind": "start", "node": "n", "pid": 1, "from_epoch": done, "gpu_share": 0.0}
    for number in range(1, EPOCHS + 1):
        checkpoints[one.cell_key] = max(number, checkpoints[one.cell_key])
        yield {"kind": "epoch", "epoch": number, "metrics": {NDCG: quality(one, number)}}
    yield {"kind": "end", "outcome": "done", "reason": "", "epochs": EPOCHS, "metrics": {}}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=4), st.sampled_from(["fifo", "asha", "dominance"]), st.integers(0, 1000))
def test_any_series_of_crashes_leaves_every_cell_with_one_end(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[int], scheduler: str, seed: int
) -> None:
    directory = tmp_path_factory.mktemp("sweep")
    simulate(directory, crashes, scheduler, random.Random(seed))
    final = [event for event in events(directory, "end") if event["outcome"] != "interrupted"]
    assert sorted(event["cell_key"] for event in final) == sorted(one.cell_key for one in CELLS)
    told = Counter((event["cell_key"], event["epoch"]) for event in events(directory, "epoch"))
    assert set(told.values()) == {1}
    by_key = {one.cell_key: one for one in CELLS}
    for event in final:
        assert event["metrics"]["best/ndcg_at_10"] == quality(by_key[event["cell_key"]], event["epochs"])
        assert event["outcome"] == "stopped" or event["epochs"] == EPOCHS
