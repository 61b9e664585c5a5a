"""What a launch may spend: the meter, the way in which a launch ends over its budget, and what it says then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sweeps import execute, stopping
from sweeps.budget import Budget
from sweeps.launch import Launch
from sweeps.ledger import FILE_NAME, read
from sweeps.outcomes import Outcome
from sweeps.spec import Budget as Limits, Resources
from tests.sweeps.test_execute import CELLS, PLAN, FakeRay, options, ray as ray, space

assert ray  # the fixture


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_gpu_time_is_share_times_time_of_what_runs_and_has_run() -> None:
    clock = Clock()
    budget = Budget(gpu_s=10.0, shares={"a": 0.25, "b": 1.0, "c": None}, clock=clock)
    budget.start("a")
    clock.now += 8
    budget.start("b")
    budget.start("c")
    clock.now += 2
    assert budget.spent_gpu_s == 0.25 * 10 + 1.0 * 2
    budget.release("b")
    budget.release("b")
    clock.now += 4
    assert budget.spent_gpu_s == 0.25 * 14 + 1.0 * 2
    assert not budget.spent()
    clock.now += 18
    assert budget.spent_gpu_s == 10.0
    assert budget.spent() == "0.00278 h of GPU time"
    budget.release("a")
    budget.release("c")
    assert budget.is_idle
    assert budget.spent(), "what is spent stays spent"


def test_a_second_start_pays_for_the_first() -> None:
    clock = Clock()
    budget = Budget(shares={"a": 1.0}, clock=clock)
    budget.start("a")
    clock.now += 3
    budget.start("a")
    clock.now += 4
    budget.release("a")
    assert budget.spent_gpu_s == 7


def test_wall_time_runs_from_the_start_whatever_runs() -> None:
    clock = Clock()
    budget = Budget(wall_s=3600.0, clock=clock)
    clock.now += 3599
    assert not budget.spent()
    clock.now += 1
    assert budget.spent() == "1 h of wall time"


NDCG = "valid/ndcg_at_10"


def start(launch: Launch, number: int) -> bool:
    return launch.message(
        CELLS[number].cell_key, {"kind": "start", "node": "n", "pid": 1, "from_epoch": 0, "gpu_share": 0.0}
    )


def epoch(launch: Launch, number: int, epoch: int) -> bool:
    return launch.message(CELLS[number].cell_key, {"kind": "epoch", "epoch": epoch, "metrics": {NDCG: 0.1}})


def opened(tmp_path: Path, budget: Budget) -> Launch:
    launch = Launch(tmp_path, CELLS, stopping.Fifo(), budget=budget)
    launch.open("s", "1", cell_keys=[one.cell_key for one in CELLS])
    return launch


def told(path: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event, _ in read(path / FILE_NAME) if event["type"] == kind]


def test_over_its_budget_trials_end_with_their_next_epoch(tmp_path: Path) -> None:
    clock = Clock()
    launch = opened(tmp_path, Budget(gpu_s=60.0, shares={one.cell_key: 0.5 for one in CELLS}, clock=clock))
    assert not start(launch, 0)
    assert not start(launch, 1)
    assert not epoch(launch, 0, 1)
    clock.now += 61
    assert not launch.should_stop(), "two trials are in the middle of an epoch"
    assert start(launch, 2), "nothing new starts"
    assert epoch(launch, 0, 2)
    assert not launch.should_stop()
    end = {"kind": "end", "outcome": "done", "reason": "", "epochs": 1, "metrics": {}}
    launch.message(CELLS[1].cell_key, end)
    assert launch.should_stop()
    assert launch.close() == "budget"
    assert [(one["cell_key"], one["epoch"]) for one in told(tmp_path, "epoch")] == [
        (CELLS[0].cell_key, 1),
        (CELLS[0].cell_key, 2),
    ]
    assert len(told(tmp_path, "start")) == 2, "a trial that was not let in leaves no trace"
    ends = {one["cell_key"]: (one["outcome"], one["reason"]) for one in told(tmp_path, "end")}
    assert ends == {
        CELLS[0].cell_key: ("interrupted", "the launch had spent its 0.0167 h of GPU time"),
        CELLS[1].cell_key: ("done", ""),
    }
    assert (told(tmp_path, "close")[0]["reason"], told(tmp_path, "close")[0]["remaining"]) == ("budget", 5)


def test_a_dead_trial_is_not_waited_for(tmp_path: Path) -> None:
    clock = Clock()
    launch = opened(tmp_path, Budget(wall_s=1.0, clock=clock))
    start(launch, 0)
    clock.now += 1
    assert not launch.should_stop()
    launch.lost(CELLS[0].cell_key, "its process died", outcome=Outcome.INTERRUPTED)
    assert launch.should_stop()
    launch.close()


def test_whoever_cannot_wait_interrupts(tmp_path: Path) -> None:
    clock = Clock()
    launch = opened(tmp_path, Budget(wall_s=1.0, clock=clock))
    start(launch, 0)
    clock.now += 1
    assert not launch.should_stop()
    launch.interrupt()
    assert launch.should_stop()
    assert launch.close() == "interrupted"


@pytest.mark.parametrize("by_option", [True, False])
def test_a_launch_says_what_it_spent_and_how_to_go_on(
    tmp_path: Path, ray: FakeRay, by_option: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = 1e-9
    spec = space(budget=Limits(wall_hours=99.0 if by_option else hours))
    chosen = options(tmp_path, limit_wall_hours=hours if by_option else None, command="python -m sweeps.run s.yaml")
    assert execute.run(spec, PLAN, chosen) == 0
    said = capsys.readouterr().out
    assert f"The launch has spent its budget: {hours:.3g} h of wall time." in said
    assert "6 of 6 cells are left; to go on:\n  python -m sweeps.run s.yaml\n" in said
    assert told(tmp_path / "s", "close")[0]["reason"] == "budget"
    assert not told(tmp_path / "s", "end"), "and no cell is given up for it"
    assert execute.run(space(), PLAN, options(tmp_path)) == 0
    assert told(tmp_path / "s", "close")[1]["remaining"] == 0


def test_a_launch_over_its_gpu_hours_ends_in_the_middle(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each trial of a quarter GPU takes 0.25 GPU-hours; the third exceeds 0.6 and ends with its next epoch."""
    clock = Clock()
    monkeypatch.setattr(Budget, "__init__", _with_clock(Budget.__init__, clock))
    message = Launch.message

    def slow(self: Launch, cell_key: str, said: Any) -> bool:
        clock.now += 1200 if said["kind"] == "epoch" else 0
        return message(self, cell_key, said)

    monkeypatch.setattr(Launch, "message", slow)
    spec = space(resources=Resources(gpus_per_trial=0.25))
    assert execute.run(spec, PLAN, options(tmp_path, limit_gpu_hours=0.6)) == 0
    assert [one["outcome"] for one in told(tmp_path / "s", "end")] == ["done", "done", "interrupted"]
    assert told(tmp_path / "s", "close")[0]["reason"] == "budget"
    said = capsys.readouterr().out
    assert "Pareto front of s" in said
    assert "spent its budget: 0.6 h of GPU time" in said
    assert "4 of 6 cells are left; the same command goes on with them." in said


def _with_clock(original: Any, clock: Clock) -> Any:
    def init(self: Budget, *arguments: Any, **fields: Any) -> None:
        original(self, *arguments, **{"clock": clock, **fields})

    return init
