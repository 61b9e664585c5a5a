"""Drills on real Ray and real training, small: whatever is killed, every cell ends once, as if undisturbed."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from watch import Sweep, undisturbed, untimed

pytestmark = pytest.mark.slow


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    made = Sweep(tmp_path)
    yield made
    made.kill()


def test_every_way_to_end(sweep: Sweep) -> None:
    faults = {16: "oom", 24: "nan", 32: "killed_once", 40: "error", 48: "killed"}
    code, text = sweep.run(*(f"--fault={size}={name}" for size, name in faults.items()))
    assert code == 1, text
    ends = sweep.ends()
    outcomes = {size: (event["outcome"], event["attempt"]) for size, event in ends.items()}
    assert outcomes == {
        8: ("done", 1),
        16: ("oom", 1),
        24: ("diverged", 1),
        32: ("done", 2),
        40: ("error", 1),
        48: ("error", 3),
        56: ("done", 1),
        64: ("done", 1),
    }
    assert "Tried to allocate" in ends[16]["reason"]
    assert "train/loss: got nan" in ends[24]["reason"]
    assert ends[40]["reason"].endswith("KeyError: 'a mistake in the training code'")
    assert "died" in ends[48]["reason"]
    for size in (8, 32, 64):
        assert untimed(ends[size]["metrics"]) == undisturbed(sweep, size)
    resumed = [event for event in sweep.events("start") if event["cell_key"] == ends[32]["cell_key"]]
    assert [event["from_epoch"] for event in resumed] == [0, 2]
    pids = {event["pid"] for event in sweep.events("start") if event["attempt"] == 1}
    assert len(pids) < 8, "processes are used again"
    assert not list((sweep.directory / "runs" / "drill" / "checkpoints").iterdir())
    assert "raylet" not in text
    assert "Traceback" not in text


def test_a_spent_budget_ends_trials_with_an_epoch_that_is_not_lost(sweep: Sweep) -> None:
    planned = ("--cells=3", "--epochs=40")
    code, text = sweep.run(*planned, "--epoch-s=0.3", "--budget-epochs=3")
    assert code == 0, text
    assert sweep.events("close")[-1]["reason"] == "budget"
    assert sweep.events("close")[-1]["remaining"] == 3
    starts, ends = sweep.events("start"), sweep.events("end")
    assert len(starts) <= 2, "two cores; nothing starts on what is spent"
    assert [end["outcome"] for end in ends] == ["interrupted"] * len(starts)
    assert all("had spent its" in end["reason"] for end in ends)
    told = {end["cell_key"]: end["epochs"] for end in ends}
    assert sum(told.values()) >= 3
    assert "3 of 3 cells are left" in text
    code, text = sweep.run(*planned)
    assert code == 0, text
    resumed = {start["cell_key"]: start["from_epoch"] for start in sweep.events("start")[len(starts) :]}
    assert {key: resumed[key] for key in told} == told, "the next launch goes on behind the last epoch told"
    assert {end["outcome"] for end in sweep.ends().values()} == {"done"}


def test_a_driver_that_is_stopped_in_every_way(sweep: Sweep) -> None:
    # The largest cell starts first, so that nearly all are left when its disk is full.
    slow = ("--epoch-s=0.2", "--epochs=6", "--fault=64=full_disk")

    code, text = sweep.run(*slow)
    assert (code, sweep.events("close")[-1]["reason"]) == (1, "interrupted"), text
    assert "No space left on device" in text

    with sweep.held():
        sweep.start(*slow)
        sweep.wait_for("start", len(sweep.events("start")) + 2)
        code, text = Sweep(sweep.directory).run(*slow)
        assert sweep.process
        assert code == 2
        assert f"error: {sweep.ledger.parent}: is in use by another driver (pid {sweep.process.pid} on " in text
    sweep.wait_for("epoch", len(sweep.events("epoch")) + 3)
    sweep.process.send_signal(signal.SIGKILL)
    sweep.finish()

    with sweep.held():
        sweep.start(*slow)
        sweep.wait_for("start", len(sweep.events("start")) + 2)
        sweep.process.send_signal(signal.SIGINT)
    code, text = sweep.finish()
    assert code == 130, text
    assert sweep.events("close")[-1]["reason"] == "interrupted"

    code, text = sweep.run(*slow)
    assert code == 0, text
    assert sweep.events("close")[-1] | {"time_ms": 0, "sequence": 0} == {
        "type": "close",
        "sequence": 0,
        "time_ms": 0,
        "launch": 4,
        "reason": "finished",
        "remaining": 0,
    }
    for size, event in sweep.ends().items():
        assert event["outcome"] == "done"
        assert event["epochs"] == 6
        assert untimed(event["metrics"]) == undisturbed(sweep, size, epochs=6)
    trained = Counter((size, what) for _, size, what in sweep.trace() if what.startswith("epoch"))
    twice = sum(count - 1 for count in trained.values())
    assert twice <= 4, "an epoch is told again from its checkpoint, not trained again, but for two a crash"

    code, text = sweep.run(*slow)
    assert code == 0
    assert "all 8 cells are done" in text


def test_a_stopped_trial_is_over_before_its_process_goes_on(sweep: Sweep) -> None:
    code, text = sweep.run("--instant", "--scheduler=asha", "--epochs=9")
    assert code == 0, text
    outcomes = Counter(event["outcome"] for event in sweep.ends().values())
    assert outcomes["stopped"] >= 2
    epochs = {size: event["epochs"] for size, event in sweep.ends().items()}
    by_process: dict[str, list[tuple[str, str]]] = {}
    for pid, size, what in sweep.trace():
        by_process.setdefault(pid, []).append((size, what))
    for entries in by_process.values():
        running = ""
        for size, what in entries:
            if what == "begin":
                assert running == "", "the cell before has not ended its thread"
                running = size
            elif what == "unwound":
                assert running == size
                running = ""
            else:
                assert running == size
                assert int(what.removeprefix("epoch ")) <= epochs[int(size)], "it trained on after it was stopped"


def test_a_request_that_no_node_can_serve(sweep: Sweep) -> None:
    code, text = sweep.run("--cpus=64", "--num-cpus=2")
    assert code == 2
    assert "error: resources: got 64 CPUs and 0 GPUs for a trial; expected at most what one node has" in text
    assert not sweep.events("plan")


def test_cells_that_wait_at_a_rung_go_on_from_their_checkpoints_as_if_they_had_not(sweep: Sweep) -> None:
    code, text = sweep.run("--scheduler=pareto_asha", "--epochs=6", "--cells=5")
    assert code == 0, text
    ends = sweep.ends()
    starts = sweep.events("start")
    assert len(ends) == 5
    assert sum(event["outcome"] == "interrupted" for event in sweep.events("end")) >= 5, "all wait at the first rung"
    assert {event["from_epoch"] for event in starts} >= {0, 1}
    done = [size for size, event in ends.items() if event["outcome"] == "done"]
    assert done, "the front is never stopped"
    for size in done:
        assert ends[size]["epochs"] == 6
        assert untimed(ends[size]["metrics"]) == undisturbed(sweep, size, epochs=6)
    assert set(Counter((event["cell_key"], event["epoch"]) for event in sweep.events("epoch")).values()) == {1}
