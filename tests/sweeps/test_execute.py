"""The driver without Ray: what it refuses, what it says, how it exits. With Ray: tests/faults."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from seqrec.config import Data, Run
from seqrec.data.tables import Statistics
from seqrec.errors import UserError
from sweeps import cells, cluster, execute, stopping, tuning
from sweeps.cells import Cell
from sweeps.errors import LedgerBusy
from sweeps.feed import Feed
from sweeps.launch import Launch
from sweeps.ledger import FILE_NAME, read
from sweeps.options import Options
from sweeps.space import Plan
from sweeps.spec import Budget, Resources, SchedulerSpec, SweepSpec
from tests.sweeps.crank import Crank, Message, ended, started

ROOT = Path(__file__).parents[2]
DATA = Data(path="amazon_beauty_5core")
STATISTICS = Statistics("beauty", "0" * 64, 10, 100, 20, 10, ((10, 10),))


def cell(batch_size: int) -> Cell:
    tree: dict[str, Any] = {
        "data": {"path": DATA.path},
        "model": {"name": "sasrec"},
        "loss": {"name": "ce"},
        "train": {"batch_size": batch_size, "epochs": 3},
    }
    run = Run.model_validate(tree)
    parameters: dict[str, Any] = {"loss.name": "ce", "train.batch_size": batch_size, "train.seed": run.train.seed}
    return Cell(*cells.keys(run, STATISTICS.digest), run, parameters, 2**30)


CELLS = tuple(map(cell, range(1, 7)))
PLAN = Plan(CELLS, 1, (({"a": 1}, "a > 1"),), (), STATISTICS, "somewhere.parquet")


def space(**changes: Any) -> SweepSpec:
    fields: dict[str, Any] = {
        "source": "s.yaml",
        "text": "name: s",
        "name": "s",
        "description": "",
        "data": DATA,
        "fixed": {},
        "blocks": (),
        "seeds": (1235,),
        "aliases": {},
        "objectives": (("valid/ndcg_at_10", "max"), ("memory/peak_gib", "min")),
        "scheduler": SchedulerSpec(),
        "resources": Resources(gpus_per_trial=0.0),
        "budget": Budget(),
        "overrides": ("train.epochs=3",),
    }
    return SweepSpec(**fields | changes)


class FakeRay:
    """In the place of Ray, with room for one cell: `outcomes` says how each cell ends, by batch size; cells not in it
    are given up silently. `rounds`: the cells handed over, launch by launch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcomes: Mapping[int, str] = {}
        self.rounds: list[list[int]] = []
        self.sessions: list[Any] = []
        self.before_fit: Any = lambda launch: None
        monkeypatch.setattr(cluster, "session", self.session)
        monkeypatch.setattr(cluster, "check", lambda cpus, gpus: None)
        monkeypatch.setattr(cluster, "gpu_bytes", lambda: 8 * 2**30)
        monkeypatch.setattr(cluster, "slots", lambda cpus, gpus: 1)
        monkeypatch.setattr(tuning, "fit", self.fit)
        monkeypatch.setattr("seqrec.data.load", lambda run_data: None)
        monkeypatch.setattr("sweeps.facts.data_bytes", lambda split: 0)

    def session(self, address: str | None, **options: Any) -> FakeRay:
        self.sessions.append(address)
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def fit(self, launch: Launch, feed: Feed, splits: Any, settings: Any, **options: Any) -> None:
        self.shares = {key: feed.share(one) for key, one in feed.waiting.items()}
        self.before_fit(launch)

        def script(one: Cell, share: float) -> Iterator[Message | None]:
            outcome = self.outcomes.get(one.run.train.batch_size)
            if outcome is None:
                yield None
            yield started(share=share)
            (settings.checkpoints / one.cell_key).mkdir(parents=True, exist_ok=True)
            for number in (1, 2, 3):
                metrics = {"valid/ndcg_at_10": number / 10, "time/epoch_s": 1.0, "time/elapsed_s": 1.0 * number}
                yield {"kind": "epoch", "epoch": number, "metrics": metrics}
            if outcome == "oom":
                yield ended(outcome, 3, "CUDA out of memory", **{"memory/peak_gib": 0.75})
            yield ended(str(outcome), 3, **{"test/ndcg_at_10": 0.2})

        crank = Crank(launch, feed, script, random.Random(0))
        if not launch.should_stop():
            crank.run()
        self.rounds.append([one.run.train.batch_size for one in crank.order])


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay(monkeypatch)
    fake.outcomes = {one.run.train.batch_size: "done" for one in CELLS}
    return fake


def options(tmp_path: Path, **changes: Any) -> Options:
    return replace(Options(storage=tmp_path, no_tracking=True, quiet=True), **changes)


def events(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event, _ in read(tmp_path / "s" / FILE_NAME) if event["type"] == kind]


def test_a_sweep_from_plan_to_report(tmp_path: Path, ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute.run(space(), PLAN, options(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "Pareto front of s" in said
    assert f"report: {tmp_path / 's' / 'report' / 'pareto.html'}" in said
    assert (tmp_path / "s" / "report" / "pareto.html").exists()
    [plan] = events(tmp_path, "plan")
    assert plan["cell_keys"] == [one.cell_key for one in CELLS]
    assert (plan["launch"], plan["duplicates"], plan["dropped"], plan["overrides"]) == (1, 1, 1, ["train.epochs=3"])
    assert plan["objectives"] == {"valid/ndcg_at_10": "max", "memory/peak_gib": "min"}
    assert (plan["data"]["path"], plan["data"]["digest"]) == ("somewhere.parquet", STATISTICS.digest)
    assert plan["environment"]["ray"].startswith("2.")
    assert not list((tmp_path / "s" / "checkpoints").iterdir()), "ended cells need no checkpoint"


def test_when_all_is_done_ray_is_not_even_imported(tmp_path: Path, ray: FakeRay) -> None:
    execute.run(space(), PLAN, options(tmp_path))
    (tmp_path / "call").write_bytes(pickle.dumps((space(), PLAN, options(tmp_path))))
    code = f"""
        import pickle, sys
        from pathlib import Path
        from sweeps import execute
        assert execute.run(*pickle.loads(Path({str(tmp_path / "call")!r}).read_bytes())) == 0
        heavy = {{"ray", "torch", "mlflow", "pandas", "matplotlib"}} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True)


def test_the_second_launch_has_nothing_to_do(tmp_path: Path, ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    execute.run(space(), PLAN, options(tmp_path))
    assert execute.run(space(), PLAN, options(tmp_path)) == 0
    assert len(ray.sessions) == 1
    assert "s: all 6 cells are done; nothing is left to run." in capsys.readouterr().out
    assert len(events(tmp_path, "plan")) == 1


def test_a_limited_launch_leaves_the_rest_to_the_next(
    tmp_path: Path, ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute.run(space(budget=Budget(trials=5)), PLAN, options(tmp_path, limit_trials=2)) == 0
    assert ray.rounds == [[1, 2]]
    assert events(tmp_path, "close")[-1]["reason"] == "budget"
    assert "4 of 6 cells are left" in capsys.readouterr().out
    assert execute.run(space(budget=Budget(trials=1)), PLAN, options(tmp_path)) == 0
    assert execute.run(space(), PLAN, options(tmp_path)) == 0
    assert ray.rounds == [[1, 2], [3], [4, 5, 6]]
    assert [event["remaining"] for event in events(tmp_path, "close")] == [4, 3, 0]


@pytest.mark.parametrize(("outcome", "code"), [("oom", 0), ("diverged", 0), ("stopped", 0), ("error", 1)])
def test_only_errors_fail_a_sweep(
    tmp_path: Path, ray: FakeRay, outcome: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.outcomes = {**ray.outcomes, 3: outcome}
    assert execute.run(space(), PLAN, options(tmp_path)) == code
    assert ("failed: 1 " + outcome in capsys.readouterr().out) == (outcome != "stopped")
    assert execute.run(space(), PLAN, options(tmp_path)) == code, "and go on failing it"


def test_cells_that_tune_gives_up_are_tried_again_and_then_end(tmp_path: Path, ray: FakeRay) -> None:
    ray.outcomes = {1: "done"}
    assert execute.run(space(), PLAN, options(tmp_path)) == 1
    assert sorted(ray.rounds[0]) == [1] + [size for size in (2, 3, 4, 5, 6) for _ in range(3)]
    reasons = {event["reason"] for event in events(tmp_path, "end") if event["outcome"] == "error"}
    assert reasons == {"Ray gave the trial up 3 times; see ray.log"}
    assert events(tmp_path, "close")[-1]["remaining"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_launch_in_order(tmp_path: Path, ray: FakeRay, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    ray.before_fit = lambda launch: os.kill(os.getpid(), number)
    assert execute.run(space(), PLAN, options(tmp_path)) == 130
    close = events(tmp_path, "close")[-1]
    assert (close["launch"], close["reason"], close["remaining"]) == (1, "interrupted", 6)
    assert signal.getsignal(number) is before


def test_a_crash_inside_leaves_a_ledger_that_goes_on(tmp_path: Path, ray: FakeRay) -> None:
    def crash(launch: Launch) -> None:
        raise RuntimeError("the cluster is gone")

    ray.before_fit = crash
    with pytest.raises(RuntimeError, match="cluster"):
        execute.run(space(), PLAN, options(tmp_path))
    assert events(tmp_path, "close")[-1]["reason"] == "interrupted"
    ray.before_fit = lambda launch: None
    assert execute.run(space(), PLAN, options(tmp_path)) == 0


def test_a_refused_request_leaves_no_event(tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cpus: float, gpus: float) -> None:
        raise UserError("resources: got 64 CPUs")

    monkeypatch.setattr(cluster, "check", refuse)
    with pytest.raises(UserError, match="64 CPUs"):
        execute.run(space(), PLAN, options(tmp_path))
    assert list(read(tmp_path / "s" / FILE_NAME)) == []


def test_two_drivers(tmp_path: Path, ray: FakeRay) -> None:
    ray.before_fit = lambda launch: execute.run(space(), PLAN, options(tmp_path))
    with pytest.raises(LedgerBusy):
        execute.run(space(), PLAN, options(tmp_path))


def test_checkpoints_are_kept_on_request(tmp_path: Path, ray: FakeRay) -> None:
    execute.run(space(), PLAN, options(tmp_path, keep_checkpoints=True))
    assert {path.name for path in (tmp_path / "s" / "checkpoints").iterdir()} == {one.cell_key for one in CELLS}


def test_asha_starts_cells_in_the_order_of_its_seed(tmp_path: Path, ray: FakeRay) -> None:
    scheduler = SchedulerSpec(name="asha", shuffle_seed=5)
    execute.run(space(scheduler=scheduler), PLAN, options(tmp_path))
    assert ray.rounds[0] == [one.run.train.batch_size for one in stopping.order(scheduler, CELLS)]
    assert ray.rounds[0] != [1, 2, 3, 4, 5, 6]


class FakeTracker:
    """In the place of MLflow's; `behind`: events it lacks until somebody starts it."""

    log: ClassVar[list[str]] = []
    behind = 0
    dead_letters = 0

    def __init__(self, ledger_path: Path, uri: str | None) -> None:
        assert uri == "sqlite:///x.db"

    def start(self) -> None:
        self.log.append("start")
        FakeTracker.behind = 0

    def attach_report(self, files: Iterable[Path], front_keys: Iterable[str], verdict: str) -> None:
        assert all(file.exists() for file in files)
        self.log.append(f"report with {len(tuple(front_keys))} on the front")

    def close(self, timeout_s: float) -> int:
        self.log.append(f"close {timeout_s:g}")
        return self.behind

    def links(self) -> list[tuple[str, str]]:
        return [("open MLflow", "http://there")]


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[FakeTracker]:
    monkeypatch.setattr("sweeps.tracking.Tracker", FakeTracker)
    FakeTracker.log.clear()
    FakeTracker.behind = 0
    return FakeTracker


def test_mlflow_is_told_everything_and_shown(
    tmp_path: Path, ray: FakeRay, tracker: type[FakeTracker], capsys: pytest.CaptureFixture[str]
) -> None:
    tracked = options(tmp_path, no_tracking=False, tracking_uri="sqlite:///x.db")
    assert execute.run(space(), PLAN, tracked) == 0
    assert tracker.log == ["start", "report with 6 on the front", "close 60"]
    assert "open MLflow: http://there" in capsys.readouterr().out


def test_a_sweep_that_is_done_only_brings_mlflow_up_to_date(
    tmp_path: Path, ray: FakeRay, tracker: type[FakeTracker], capsys: pytest.CaptureFixture[str]
) -> None:
    execute.run(space(), PLAN, options(tmp_path))
    tracked = options(tmp_path, no_tracking=False, tracking_uri="sqlite:///x.db")
    assert execute.run(space(), PLAN, tracked) == 0
    assert tracker.log == ["close 0", "close 60"]
    tracker.log.clear()
    tracker.behind = 7
    assert execute.run(space(), PLAN, tracked) == 0
    assert tracker.log == ["close 0", "start", "close 60"]
    assert "lacks" not in capsys.readouterr().out


def test_events_that_mlflow_lacks_are_counted(
    tmp_path: Path, ray: FakeRay, tracker: type[FakeTracker], capsys: pytest.CaptureFixture[str]
) -> None:
    ray.before_fit = lambda launch: setattr(tracker, "behind", 7)
    execute.run(space(), PLAN, options(tmp_path, no_tracking=False, tracking_uri="sqlite:///x.db"))
    assert f"MLflow lacks 7 events; `python -m sweeps.sync {tmp_path / 's'}` tells it later." in capsys.readouterr().out
