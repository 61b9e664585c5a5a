"""Faults on a real cluster of three nodes, each in a network namespace: whatever breaks, every cell ends once, as if
undisturbed, in the ledger and in MLflow.

    make soak                                    all of it
    python -m pytest -m soak tests/soak -k cut   one fault

With SEQREC_SOAK_RESULTS=<file> each drill adds what it found to that file.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
sys.path.insert(0, str(Path(__file__).parent))

import drive
import hosts
import record
import stores
from aftermath import ClusterSweep, check

pytestmark = pytest.mark.soak

EPOCHS = 6
PACE = (f"--epochs={EPOCHS}", "--epoch-s=0.4")
DOWN = ("MLflow at .* does not answer",)

Drill = Callable[..., ClusterSweep]


@pytest.fixture(params=["namespaces", "raylets"])
def separate(request: pytest.FixtureRequest) -> bool:
    """Whether nodes are network namespaces; else they are raylets on addresses of the loopback network."""
    if request.param == "namespaces" and (why := hosts.without_namespaces()):
        pytest.skip(why)
    return bool(request.param == "namespaces")


@pytest.fixture
def namespaces() -> None:
    if why := hosts.without_namespaces():
        pytest.skip(why)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Drill]:
    """Starts cluster, MLflow and sweep; everything is gone after the test, however it ends."""
    with contextlib.ExitStack() as stack:

        def start(*, separate: bool = True, quick_detection: bool = False) -> ClusterSweep:
            made = stack.enter_context(hosts.cluster(tmp_path, separate=separate, quick_detection=quick_detection))
            store = stack.enter_context(stores.Store(tmp_path, made.network.gateway, made.network.name))
            sweep = ClusterSweep(tmp_path / "sweep", made, store)
            stack.callback(sweep.kill)
            return sweep

        yield start


def some_trial(sweep: ClusterSweep) -> tuple[hosts.Host, int]:
    for worker in sweep.cluster.workers:
        for pid in worker.trials():
            return worker, pid
    raise AssertionError("no trial runs")


def test_a_killed_worker_process(begin: Drill, separate: bool) -> None:
    sweep = begin(separate=separate)
    sweep.start(*PACE)
    sweep.wait_for("epoch", 5)
    host, pid = some_trial(sweep)
    hosts.send([pid], signal.SIGKILL)
    code, text = sweep.finish()
    assert code == 0, text
    record.drill("a worker process killed", sweep, [f"process {pid} on {host.name}"], check(sweep, EPOCHS))


def test_a_killed_node(begin: Drill, separate: bool) -> None:
    sweep = begin(separate=separate)
    sweep.start(*PACE)
    sweep.wait_for("epoch", 5)
    host, _ = some_trial(sweep)
    host.die()
    code, text = sweep.finish()
    assert code == 0, text
    others = [worker for worker in sweep.cluster.workers if worker is not host]
    assert not host.pids()
    record.drill("a node killed", sweep, [f"{host.name}, for good"], check(sweep, EPOCHS, hosts=others))


def test_all_nodes_killed_and_one_comes_back(begin: Drill, namespaces: None) -> None:
    sweep = begin(quick_detection=True)
    sweep.start(*PACE)
    sweep.wait_for("epoch", 5)
    for worker in sweep.cluster.workers:
        worker.die()
    time.sleep(20)
    assert sweep.process
    assert sweep.process.poll() is None, "the launch waits for nodes"
    sweep.cluster.join(sweep.cluster.workers[1])
    code, text = sweep.finish()
    assert code == 0, text
    record.drill("all nodes killed, one back after 20 s", sweep, [], check(sweep, EPOCHS, ["no node"]))


def test_all_nodes_killed_for_good(begin: Drill, namespaces: None) -> None:
    sweep = begin(quick_detection=True)
    sweep.start(*PACE, "--node-patience-s=40")
    sweep.wait_for("epoch", 5)
    for worker in sweep.cluster.workers:
        worker.die()
    code, text = sweep.finish()
    assert code == 1, text
    complaints = [line for line in text.splitlines() if "no node" in line]
    assert [line.split(";")[0].split(" for ")[0] for line in complaints] == [
        "no node is up that could run a trial",
        "error: no node could run a trial",
    ]
    sweep.cluster.join(sweep.cluster.workers[1])
    code, text = sweep.run(*PACE)
    assert code == 0, text
    said = [*complaints, "one node started, the same command again"]
    record.drill("all nodes killed for good", sweep, said, check(sweep, EPOCHS, ["no node"]))


def test_a_killed_driver(begin: Drill, separate: bool) -> None:
    sweep = begin(separate=separate)
    sweep.start(*PACE)
    sweep.wait_for("epoch", 9)
    assert sweep.process
    sweep.process.send_signal(signal.SIGKILL)
    sweep.finish()
    known = len(sweep.events("epoch"))
    code, text = sweep.run(*PACE)
    assert code == 0, text
    record.drill(
        "the driver killed with -9", sweep, [f"after {known} epochs; same command again"], check(sweep, EPOCHS)
    )


@pytest.mark.parametrize("quick", [False, True], ids=["default", "quick"])
def test_a_node_cut_off_for_a_minute(begin: Drill, namespaces: None, quick: bool) -> None:
    """Quick: the cluster gives the node up at once, while its trial trains on and writes its checkpoint."""
    sweep = begin(quick_detection=quick)
    pace = (f"--epochs={EPOCHS}", "--epoch-s=4")
    sweep.start(*pace)
    sweep.wait_for("epoch", 5)
    host, _ = some_trial(sweep)
    host.cable(plugged=False)
    time.sleep(60)
    host.cable(plugged=True)
    code, text = sweep.finish()
    assert code == 0, text
    detection = "given up after seconds" if quick else "Ray's own patience"
    lost = sum(event["outcome"] == "interrupted" for event in sweep.events("end"))
    said = [f"{host.name}, {detection}: {lost} attempts lost"]
    record.drill("a node's network cut for a minute", sweep, said, check(sweep, EPOCHS, hosts=sweep.cluster.workers))


def test_mlflow_and_its_database_killed(begin: Drill, namespaces: None) -> None:
    sweep = begin()
    pace = (f"--epochs={EPOCHS}", "--epoch-s=1.5")
    sweep.start(*pace)
    sweep.wait_for("epoch", 8)
    sweep.store.kill()
    missed = len(sweep.events("epoch"))
    sweep.wait_for("epoch", missed + 16)
    sweep.store.start()
    missed = len(sweep.events("epoch")) - missed
    code, text = sweep.finish()
    assert code == 0, text
    said = [f"it missed {missed} epochs while it was down"]
    record.drill("MLflow and its database killed and started again", sweep, said, check(sweep, EPOCHS, DOWN))


def test_the_disk_full(begin: Drill, namespaces: None, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    with stores.full(tmp_path / "sweep") as filler:
        sweep = begin()
        sweep.start(*PACE)
        sweep.wait_for("epoch", 6)
        stores.fill(filler)
        code, text = sweep.finish()
        assert code == 1, text
        complaints = [line for line in text.splitlines() if "No space left" in line]
        assert [line.startswith("error: ") for line in complaints if "MLflow" not in line] == [True], text
        whole = len(sweep.events("epoch"))
        filler.unlink()
        code, text = sweep.run(*PACE)
        assert code == 0, text
        said = [
            f"exit 1: {' / '.join(complaints)}",
            f"the ledger was whole up to {whole} epochs; room made, the same command",
        ]
        record.drill("the disk of ledger and checkpoints full", sweep, said, check(sweep, EPOCHS, ["No space left"]))


def test_two_interrupts(begin: Drill, namespaces: None) -> None:
    sweep = begin()
    sweep.start(*PACE)
    sweep.wait_for("epoch", 6)
    assert sweep.process
    sweep.process.send_signal(signal.SIGINT)
    hosts.wait(lambda: "interrupted: writing" in sweep.output(), "the answer to Ctrl-C")
    sweep.process.send_signal(signal.SIGINT)
    code, text = sweep.finish()
    assert code == 130, text
    code, text = sweep.run(*PACE)
    assert code == 0, text
    record.drill("SIGINT twice", sweep, ["exit 130; the same command again"], check(sweep, EPOCHS))


def test_a_termination(begin: Drill, namespaces: None) -> None:
    sweep = begin()
    sweep.start(*PACE)
    sweep.wait_for("epoch", 6)
    assert sweep.process
    sweep.process.send_signal(signal.SIGTERM)
    code, text = sweep.finish()
    assert code == 130, text
    assert sweep.events("close")[-1]["reason"] == "interrupted"
    code, text = sweep.run(*PACE)
    assert code == 0, text
    record.drill("SIGTERM", sweep, ["exit 130; the same command again"], check(sweep, EPOCHS))


def test_a_clock_that_jumps(begin: Drill, namespaces: None) -> None:
    sweep = begin()
    sweep.start(*PACE)
    clock = sweep.directory / drive.CLOCK
    for epochs, hours in ((5, 7), (12, -5), (20, 30), (28, 0)):
        sweep.wait_for("epoch", epochs)
        clock.with_suffix(".new").write_text(str(hours))
        clock.with_suffix(".new").replace(clock)
    code, text = sweep.finish()
    assert code == 0, text
    times = [event["time_ms"] for event in sweep.events("epoch")]
    assert any(later < earlier for earlier, later in itertools.pairwise(times)), "it did jump"
    said = ["the driver's: +7 h, -5 h, +30 h, right again"]
    record.drill("a clock that jumps", sweep, said, check(sweep, EPOCHS))


def test_a_worker_that_hangs(begin: Drill, namespaces: None) -> None:
    sweep = begin()
    sweep.start(*PACE)
    sweep.wait_for("epoch", 5)
    host, pid = some_trial(sweep)
    hosts.send([pid], signal.SIGSTOP)
    try:
        time.sleep(60)
    finally:
        hosts.send([pid], signal.SIGCONT)
    code, text = sweep.finish()
    assert code == 0, text
    record.drill(
        "a worker process stopped for a minute", sweep, [f"process {pid} on {host.name}"], check(sweep, EPOCHS)
    )
