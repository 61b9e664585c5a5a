"""The front timed again: which cells, once each, within the budget, and never at a cell's expense. On Ray: one sweep of
two trials at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seqrec import data, stopwatch
from seqrec.config import Run
from seqrec.data.tables import Split
from seqrec.errors import UserError
from seqrec.reports import EpochReport, Metrics, RunReport
from sweeps import alone, budget, cells, execute, remaining, results, retime, run as command, signals
from sweeps.alone import Timed
from sweeps.cells import Cell
from sweeps.errors import LedgerError
from sweeps.launch import Launch
from sweeps.ledger import Ledger
from sweeps.space import Plan
from sweeps.spec import Budget, Resources
from tests.faults.drive import make_data, make_run
from tests.sweeps.test_execute import CELLS, PLAN, FakeRay, events, options, ray as ray, space

assert ray  # the fixture
SHARED = Resources(gpus_per_trial=0.25, retime="front")
FRONT = [cell.cell_key for cell in sorted(CELLS, key=lambda cell: cell.configuration_key)]
"""All cells are equal in quality and predicted memory; the front has them in this order."""
LABELS = {cell.cell_key: cell.label for cell in CELLS}


class Alone:
    """In the place of Ray: what each cell's timing gives, by its place on the front; 0.5 s an epoch where nothing is
    said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        self.given: dict[int, Any] = {}
        monkeypatch.setattr(alone, "each", self.each)

    def each(self, runs: dict[str, Run], splits: Any, **settings: Any) -> Iterator[tuple[str, Timed | Exception]]:
        self.asked.append(list(runs))
        self.settings = settings
        for key in runs:
            if settings["should_stop"]():
                return
            settings["on_begin"](key)
            given = self.given.get(FRONT.index(key), Timed({"time/epoch_s": 0.5, "time/step_ms": 5.0}, "n", "g"))
            if callable(given):
                given = given()
            yield key, given


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Alone:
    return Alone(monkeypatch)


@pytest.fixture
def _on_a_quarter(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of the fake Ray has a quarter of a GPU."""
    said = Launch.message

    def message(self: Launch, key: str, message: Any) -> bool:
        return said(self, key, {**message, "gpu_share": 0.25} if message["kind"] == "start" else message)

    monkeypatch.setattr(Launch, "message", message)


quarter = pytest.mark.usefixtures("_on_a_quarter")


@quarter
def test_each_shared_cell_of_the_front_once(tmp_path: Path, ray: FakeRay, times: Alone) -> None:
    assert execute.run(space(resources=SHARED), PLAN, options(tmp_path)) == 0
    assert times.asked == [FRONT]
    assert (times.settings["on_gpu"], times.settings["cpus"]) == (True, 1.0)
    [first, *_] = told = events(tmp_path, "timing")
    assert [event["cell_key"] for event in told] == FRONT
    assert first["metrics"] == {"time/epoch_s": 0.5, "time/step_ms": 5.0}
    assert (first["epochs"], first["node"], first["gpu"]) == (retime.EPOCHS, "n", "g")
    table = results.table(tmp_path / "s")
    assert set(table["timing"]) == {"alone, again"}
    assert set(table["time/epoch_s"]) == {0.5}
    assert "0.5'" in (tmp_path / "s" / "report" / "report.md").read_text(encoding="utf-8"), "the report comes after it"
    assert execute.run(space(resources=SHARED), PLAN, options(tmp_path)) == 0
    assert len(times.asked) == 1, "nothing is due any more"
    assert len(ray.sessions) == 2, "nor is Ray started: one session for the cells, one for their times"


@quarter
def test_on_a_cluster_it_takes_the_hardware_that_the_trials_took(
    tmp_path: Path, ray: FakeRay, times: Alone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[float] = []
    monkeypatch.setattr("sweeps.cluster.blind_nodes", lambda folder: [])
    monkeypatch.setattr("sweeps.cluster.check", lambda cpus, gpus: asked.append(gpus))
    monkeypatch.setattr("sweeps.cluster.has_gpus", lambda: True)
    resources = Resources(gpus_per_trial="auto", retime="front")
    far = {"address": "auto"}
    assert execute.run(space(resources=resources), PLAN, options(tmp_path, **far)) == 0
    assert times.asked == [FRONT]
    assert (times.settings["on_gpu"], asked[-1]) == (True, 1.0)
    assert execute.run(space(name="t", resources=resources), PLAN, options(tmp_path, **far, retime=False)) == 0
    monkeypatch.setattr("sweeps.cluster.has_gpus", lambda: False)
    assert execute.run(space(name="t", resources=resources), PLAN, options(tmp_path, **far)) == 0
    assert times.asked == [FRONT], "and no CPU's times in the place of a GPU's"
    assert "not timed again: s.yaml: resources.gpus_per_trial: got 'auto', which is CPUs" in capsys.readouterr().err


@quarter
@pytest.mark.parametrize(("retime_", "option", "asked"), [("none", None, 0), ("none", True, 1), ("front", False, 0)])
def test_it_is_off_by_default_and_the_option_wins(
    tmp_path: Path, ray: FakeRay, times: Alone, retime_: Any, option: bool | None, asked: int
) -> None:
    resources = Resources(gpus_per_trial=0.25, retime=retime_)
    assert execute.run(space(resources=resources), PLAN, options(tmp_path, retime=option)) == 0
    assert len(times.asked) == asked


@pytest.mark.parametrize(("words", "option"), [([], None), (["--retime"], True), (["--no-retime"], False)])
def test_the_option(words: list[str], option: bool | None) -> None:
    arguments = command._parser().parse_args(["s.yaml", *words])
    arguments.command = ""
    assert command._options(arguments).retime is option


def test_what_ran_alone_is_not_timed_again(tmp_path: Path, ray: FakeRay, times: Alone) -> None:
    """The fake trials ran on a CPU, one after the other."""
    execute.run(space(), PLAN, options(tmp_path, retime=True))
    assert times.asked == []


@quarter
def test_a_later_launch_with_nothing_else_to_do_does_it(tmp_path: Path, ray: FakeRay, times: Alone) -> None:
    execute.run(space(resources=SHARED), PLAN, options(tmp_path, retime=False))
    assert execute.run(space(resources=SHARED), PLAN, options(tmp_path)) == 0
    assert times.asked == [FRONT]
    assert [(event["launch"], event["reason"]) for event in events(tmp_path, "close")] == [
        (1, "finished"),
        (2, "finished"),
    ]
    with Ledger(tmp_path / "s") as ledger:
        assert ledger.state.launches == 2


@quarter
def test_not_before_every_cell_has_ended(tmp_path: Path, ray: FakeRay, times: Alone) -> None:
    execute.run(space(resources=SHARED), PLAN, options(tmp_path, limit_trials=5))
    assert times.asked == []
    execute.run(space(resources=SHARED), PLAN, options(tmp_path))
    assert times.asked == [FRONT]


@quarter
def test_a_failure_is_a_note_and_the_result_stands(
    tmp_path: Path, ray: FakeRay, times: Alone, capsys: pytest.CaptureFixture[str]
) -> None:
    times.given = {1: RuntimeError("CUDA error: unspecified launch failure")}
    assert execute.run(space(resources=SHARED), PLAN, options(tmp_path)) == 0
    said = capsys.readouterr()
    assert f"note: {LABELS[FRONT[1]]}: was not timed again" in said.err
    assert "CUDA error: unspecified launch failure" in said.err
    assert "5 of 6 cells of the front were timed again, alone." in said.out
    table = results.table(tmp_path / "s").set_index("cell_key")
    assert (table.loc[FRONT[1], "outcome"], table.loc[FRONT[1], "timing"]) == ("done", "shared")
    assert table.loc[FRONT[1], "time/epoch_s"] == 1.0
    times.given = {}
    execute.run(space(resources=SHARED), PLAN, options(tmp_path))
    assert times.asked[1] == [FRONT[1]], "tried again by the next launch"


@quarter
@pytest.mark.parametrize("error", [TimeoutError("no whole GPU became free"), UserError("resources: got 1 GPU")])
def test_without_a_whole_gpu_it_is_left_out_with_a_note(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def each(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(alone, "each", each)
    assert execute.run(space(resources=SHARED), PLAN, options(tmp_path)) == 0
    assert f"note: the front was not timed again: {error}" in capsys.readouterr().err
    assert (tmp_path / "s" / "report" / "pareto.html").exists()
    assert events(tmp_path, "close")[-1]["reason"] == "finished"


@quarter
def test_a_crash_in_between_loses_nothing(tmp_path: Path, ray: FakeRay, times: Alone) -> None:
    def crash() -> Any:
        raise KeyboardInterrupt

    times.given = {2: crash}
    with pytest.raises(KeyboardInterrupt):
        execute.run(space(resources=SHARED), PLAN, options(tmp_path))
    assert [event["cell_key"] for event in events(tmp_path, "timing")] == FRONT[:2]
    times.given = {}
    assert execute.run(space(resources=SHARED), PLAN, options(tmp_path)) == 0
    assert times.asked[1] == FRONT[2:]
    assert [event["cell_key"] for event in events(tmp_path, "timing")] == FRONT


@quarter
def test_an_interruption_ends_it(tmp_path: Path, ray: FakeRay, times: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Launch] = []
    made = Launch.__init__
    monkeypatch.setattr(Launch, "__init__", lambda self, *a, **k: (launches.append(self), made(self, *a, **k))[1])

    def interrupted() -> Timed:
        launches[-1].interrupt()
        return Timed({"time/epoch_s": 0.5, "time/step_ms": 5.0}, "n", "g")

    times.given = {1: interrupted}
    assert execute.run(space(resources=SHARED), PLAN, options(tmp_path)) == signals.EXIT_INTERRUPTED
    assert len(events(tmp_path, "timing")) == 2, "what was done stays"
    assert events(tmp_path, "close")[-1]["reason"] == "interrupted"


@quarter
def test_its_time_is_the_launch_s_and_its_share_a_whole_gpu(
    tmp_path: Path,
    ray: FakeRay,
    times: Alone,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = [0.0]
    monkeypatch.setattr(remaining, "Budget", partial(budget.Budget, clock=lambda: clock[0]))

    def half_an_hour() -> Timed:
        clock[0] += 1800.0
        return Timed({"time/epoch_s": 0.5, "time/step_ms": 5.0}, "n", "g")

    times.given = dict.fromkeys(range(6), half_an_hour)
    spec = space(resources=SHARED, budget=Budget(gpu_hours=1.0))
    assert execute.run(spec, PLAN, options(tmp_path)) == 0
    assert len(events(tmp_path, "timing")) == 2, "two half hours of a whole GPU"
    said = capsys.readouterr().out
    assert "2 of 6 cells of the front were timed again" in said
    assert "The launch has spent its budget: 1 h of GPU time." in said


@quarter
def test_a_ledger_that_cannot_be_written_is_an_error(
    tmp_path: Path, ray: FakeRay, times: Alone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = Ledger.append

    def full(self: Ledger, type: str, **fields: Any) -> Any:
        if type == "timing":
            raise LedgerError("the disk is full")
        return append(self, type, **fields)

    monkeypatch.setattr(Ledger, "append", full)
    assert execute.run(space(resources=SHARED), PLAN, options(tmp_path)) == execute.EXIT_FAILED
    assert "error: the disk is full" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- on Ray


def train(run: Run, *, on_epoch: Any, workdir: Path, **_: Any) -> RunReport:
    """Better with every size. The two largest start first, and each waits for the other, then each of the rest: they
    share the machine."""
    size = run.train.batch_size
    quality, place = size / 100, workdir.parent.parent
    (place / f"begun-{size}").touch()
    while len(list(place.glob("begun-*"))) < (2 if size >= 24 else 4):
        time.sleep(0.01)
    metrics = {"valid/ndcg_at_10": quality, "time/epoch_s": 99.0, "time/elapsed_s": 99.0, "train/loss": 1.0}
    on_epoch(EpochReport(1, metrics, True))
    return RunReport(1, False, {"best/ndcg_at_10": quality, "time/epoch_s": 99.0})


def measure(run: Run, *, split: Split, count: int, device: str) -> Metrics:
    """Real times; one cell takes its process along. Tells when it began and ended."""
    since = time.time()
    if run.train.batch_size == 24:
        os._exit(1)
    found = stopwatch.epochs(run, split=split, count=count, device=device)
    return found | {"time/began": since, "time/ended": time.time()}


@pytest.mark.slow
def test_on_ray_two_at_a_time_and_then_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_data(tmp_path)
    monkeypatch.setattr(retime, "front", partial(retime.front, measure=measure))
    runs = [make_run(path, size, epochs=1) for size in (8, 16, 24, 32)]
    statistics = data.statistics(runs[0].data)
    planned = [
        Cell(
            *cells.keys(run, statistics.digest), run, {"loss.name": "ce", "train.seed": 1}, 2**20 * run.train.batch_size
        )
        for run in runs
    ]
    sweep = space(data=runs[0].data, resources=Resources(retime="front"))
    plan = Plan(tuple(planned), 0, (), (), statistics, str(path))
    assert execute.run(sweep, plan, options(tmp_path, num_cpus=2), trainer=train) == 0
    table = results.table(tmp_path / "s")
    assert set(table["outcome"]) == {"done"}
    assert list(table["timing"]) == ["alone, again", "alone, again", "shared", "alone, again"]
    first, second, third = (event["metrics"] for event in events(tmp_path, "timing"))
    assert first["time/ended"] <= second["time/began"], "one at a time, though there are two cores"
    assert second["time/ended"] <= third["time/began"]
    assert 0 < first["time/epoch_s"] < 99.0
    n_users = statistics.n_train_users
    assert first["time/step_ms"] == pytest.approx(1e3 * first["time/epoch_s"] / -(-n_users // 8))
    said = capfd.readouterr()
    assert "3 of 4 cells of the front were timed again, alone." in said.out
    assert said.err.count("was not timed again, its result stands") == 1
