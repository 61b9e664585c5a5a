"""Every fault, drilled on real Ray, real training and MLflow, with what was left of the sweep afterwards.

    python benchmarks/faults.py --out benchmarks/results/faults.txt

A drill passes if every cell stands exactly once in the ledger's final table and in MLflow, no epoch is told twice, and
the results are those of a training that nothing disturbed. The full disk needs root for a small file system of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from watch import Sweep, undisturbed, untimed

from sweeps import environment

Report = list[str]


def killed_driver(directory: Path) -> Report:
    sweep, options = Sweep(directory), ("--epoch-s=0.3", "--epochs=6", "--track")
    sweep.start(*options)
    sweep.wait_for("epoch", 7)
    assert sweep.process
    sweep.process.send_signal(signal.SIGKILL)
    sweep.finish()
    said = [f"driver killed with -9 after {len(sweep.events('epoch'))} epochs and {len(sweep.events('end'))} ends"]
    code, _ = sweep.run(*options)
    resumed = sum(event["from_epoch"] > 0 for event in sweep.events("start"))
    return [*said, f"the same command again: exit {code}, {resumed} cells went on from a checkpoint", *left(sweep, 6)]


def killed_worker(directory: Path) -> Report:
    sweep = Sweep(directory)
    code, _ = sweep.run("--fault=16=killed_once", "--fault=48=killed", "--track")
    lost = [event["reason"] for event in sweep.events("end") if event["outcome"] == "interrupted"]
    return [f"exit {code}; {len(lost)} times: {lost[0]}", *left(sweep, 4)]


def out_of_memory_and_nan(directory: Path) -> Report:
    sweep = Sweep(directory)
    code, _ = sweep.run("--fault=16=oom", "--fault=24=nan", "--fault=40=error", "--track")
    ends = sweep.ends()
    reasons = [f"b{size} {ends[size]['outcome']}: {ends[size]['reason'].splitlines()[-1]}" for size in (16, 24, 40)]
    return [f"exit {code}", *reasons, *left(sweep, 4)]


def two_drivers(directory: Path) -> Report:
    sweep, options = Sweep(directory), ("--epoch-s=0.2", "--track")
    sweep.start(*options)
    sweep.wait_for("start", 1)
    code, text = Sweep(directory).run(*options)
    said = [f"the second driver: exit {code}, {text.strip().splitlines()[-1].replace(str(directory), '...')}"]
    first, _ = sweep.finish()
    return [*said, f"the first: exit {first}", *left(sweep, 4)]


def full_disk(directory: Path) -> Report:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(directory)], check=True)
    try:
        sweep, options = Sweep(directory), ("--epoch-s=0.1", "--epochs=6")
        sweep.start(*options)
        sweep.wait_for("epoch", 4)
        filler = directory / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        code, text = sweep.finish()
        complaint = next(line for line in text.splitlines() if "No space left" in line)
        said = [f"file system filled: exit {code}, {complaint.replace(str(directory), '...')}"]
        said.append(f"the ledger holds {len(list(sweep.events('epoch')))} epochs, every line whole")
        filler.unlink()
        code, _ = sweep.run(*options, "--track")
        return [*said, f"room made, the same command again: exit {code}", *left(sweep, 6)]
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def mlflow_restarted(directory: Path) -> Report:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    uri, store = f"http://127.0.0.1:{port}", f"sqlite:///{directory / 'server.db'}"
    sweep = Sweep(directory)
    with mlflow_server(store, directory, port):
        sweep.start("--epoch-s=2", "--epochs=6", f"--tracking-uri={uri}")
        sweep.wait_for("epoch", 4)
        wait(lambda: children(uri) != [])
        before = len(children(uri))
    at_stop = len(sweep.events("epoch"))
    sweep.wait_for("epoch", at_stop + 12)
    missed = len(sweep.events("epoch")) - at_stop
    with mlflow_server(store, directory, port):
        code, text = sweep.finish()
        said = [
            f"server stopped when it knew {before} cells, started again {missed} epochs later: exit {code}",
            *(line for line in text.splitlines() if "MLflow at" in line),
        ]
        return [*said, *left(sweep, 6, uri)]


@contextlib.contextmanager
def mlflow_server(store: str, directory: Path, port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port), "-w", "1"]
    command += ["--artifacts-destination", str(directory / "artifacts")]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (directory / "server.log").open("a") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **settings}, cwd=directory, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait(lambda: answers(f"http://127.0.0.1:{port}/health"))
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def wait(condition: Callable[[], bool], patience_s: float = 120.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def children(uri: str) -> list[tuple[str, str, int]]:
    """(cell_key, outcome, epochs told) of every child run in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [run for run in client.search_runs(experiments, max_results=1000) if "sweep.cell_key" in run.data.tags]
    return [
        (
            run.data.tags["sweep.cell_key"],
            run.data.tags.get("sweep.outcome", ""),
            len({point.step for point in client.get_metric_history(run.info.run_id, "valid/ndcg_at_10")}),
        )
        for run in runs
    ]


def left(sweep: Sweep, epochs: int, uri: str | None = None) -> Report:
    """What the sweep left, checked: raises AssertionError if a cell is missing, doubled or different."""
    ends = sweep.ends()
    outcomes = Counter(event["outcome"] for event in ends.values())
    assert len(ends) == 8
    done = [size for size, event in ends.items() if event["outcome"] == "done"]
    for size in done:
        assert untimed(ends[size]["metrics"]) == undisturbed(sweep, size, epochs), size
    told = children(uri or f"sqlite:///{sweep.ledger.parents[1] / 'mlflow.db'}")
    assert sorted(told) == sorted(
        (event["cell_key"], event["outcome"], _validated(sweep, event["cell_key"])) for event in ends.values()
    )
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return [
        f"ledger: {len(ends)} cells, each with one end: {counts}",
        f"MLflow: {len(told)} children, all epochs once",
        f"results of {len(done)} finished cells: equal to an undisturbed training's",
    ]


def _validated(sweep: Sweep, cell_key: str) -> int:
    return sum(event["cell_key"] == cell_key for event in sweep.events("epoch"))


DRILLS = (killed_driver, killed_worker, out_of_memory_and_nan, two_drivers, full_disk, mlflow_restarted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=[drill.__name__ for drill in DRILLS])
    arguments = parser.parse_args()
    commit = environment.describe().get("git_commit", "?")[:12]
    lines = [f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit}, {os.cpu_count()} cores"]
    print(lines[0])
    for drill in DRILLS:
        if arguments.only not in (None, drill.__name__):
            continue
        since = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            report = drill(Path(folder))
        lines += [
            "",
            f"{drill.__name__.replace('_', ' ')} ({time.monotonic() - since:.0f} s)",
            *(f"  {line}" for line in report),
        ]
        print("\n".join(lines[-len(report) - 2 :]), flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
