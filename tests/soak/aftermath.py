"""What a sweep has left once all its cells have ended, checked against what it must have left."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import drive
from hosts import Cluster, Host, wait
from stores import Store
from watch import Sweep, untimed

from seqrec.train import train
from sweeps import results
from sweeps.ledger import Event
from sweeps.outcomes import Outcome
from sweeps.tracking.records import STATUS

PATIENCE_S = 900.0
"""Until a launch is given up: Ray can take five minutes to see that a connection is gone."""
TROUBLE = re.compile(r"Traceback|\(raylet|Error|error|WARN|core_worker|\bE\d{4}\b|Exception|exception|failed|died")
"""What no line of a driver may say, but for those that a drill allows."""


class ClusterSweep(Sweep):
    """A drill's sweep whose driver runs on the cluster's head, as on a real one; its output goes to a file."""

    def __init__(self, directory: Path, cluster: Cluster, store: Store) -> None:
        super().__init__(directory)
        directory.mkdir(exist_ok=True)
        self.cluster = cluster
        self.store = store
        self._plans, self._launched, self._final = 0, False, 0
        self.said: list[str] = []
        """The output of every launch so far."""
        # Beside the directory: drills fill that one up.
        self._output = directory.with_name(f"{directory.name}.out")

    def start(self, *options: str) -> None:
        script = [sys.executable, drive.__file__, str(self.directory)]
        self._plans, self._launched = len(self.events("plan")), False
        self._final = len(self.final())
        command = [*script, "--address", self.cluster.address, "--tracking-uri", self.store.uri, *options]
        self.process = self.cluster.head.popen(command, output=self._output)

    def finish(self) -> tuple[int, str]:
        assert self.process
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the driver hangs; it said: {self._output.read_text()[-3000:]}") from None
        self.said.append(self._output.read_text(errors="replace"))
        self._output.unlink()
        return code, self.said[-1]

    def output(self) -> str:
        """Of the launch under way."""
        return self._output.read_text(errors="replace")

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def is_launched(self) -> bool:
        """Whether the launch under way has begun: from then on it takes signals as a driver does."""
        self._launched = self._launched or len(self.events("plan")) > self._plans
        return self._launched

    def final(self) -> list[Event]:
        """Ends that end a cell."""
        return [event for event in self.events("end") if event["outcome"] != Outcome.INTERRUPTED]

    def ended_here(self) -> int:
        """Cells that the launch under way has ended."""
        return len(self.final()) - self._final

    def sweep_dir(self) -> Path:
        return self.ledger.parent

    def trained(self) -> Counter[tuple[str, str]]:
        """How often each epoch of each cell was trained; told again from a checkpoint is not trained."""
        return Counter((size, what) for _, size, what in self.trace() if what.startswith("epoch "))


def check(sweep: ClusterSweep, epochs: int, allowed: Sequence[str] = (), hosts: Sequence[Host] = ()) -> list[str]:
    """Every law of a sweep that has ended, all cells done; raises AssertionError. Returns what was found, for people.

    allowed: patterns of lines that speak of trouble and may. hosts: where no trial may be running any more.
    """
    ends = _ledger(sweep, epochs)
    _table(sweep, ends, epochs)
    runs = _mlflow(sweep, ends, epochs)
    _undisturbed(sweep, ends, epochs)
    _quiet(sweep, allowed)
    for host in hosts:
        wait(lambda host=host: not host.trials(), f"the trials on {host.name} to end", 60.0)
    assert not list((sweep.sweep_dir() / "checkpoints").iterdir()), "no checkpoint outlives its cell"
    starts = sweep.events("start")
    cut = sum(event["outcome"] == Outcome.INTERRUPTED for event in sweep.events("end"))
    trained = sweep.trained()
    names = [_name(event) for event in sweep.events("cell")]
    assert set(trained) == set(itertools.product(names, (f"epoch {n}" for n in range(1, epochs + 1))))
    twice = sum(trained.values()) - len(trained)
    return [
        f"ledger: {len(ends)} cells, each with one end, done; {len(starts)} attempts, {cut} cut off; "
        f"{len(sweep.events('plan'))} launches",
        f"MLflow: {runs} runs of cells, FINISHED, every epoch once",
        "metrics: equal to those of trainings that nothing disturbed, bit for bit",
        f"epochs trained: {sum(trained.values())}, {twice} of them twice",
    ]


def _ledger(sweep: ClusterSweep, epochs: int) -> dict[str, Event]:
    planned = sweep.events("plan")[-1]["cell_keys"]
    final = sweep.final()
    assert Counter(event["cell_key"] for event in final) == dict.fromkeys(planned, 1)
    outcomes = {event["cell_key"]: (event["outcome"], event["reason"]) for event in final}
    assert set(outcomes.values()) == {("done", "")}, [pair for pair in outcomes.items() if pair[1][0] != "done"]
    told = Counter((event["cell_key"], event["epoch"]) for event in sweep.events("epoch"))
    assert told == {(key, epoch): 1 for key in planned for epoch in range(1, epochs + 1)}
    assert sweep.events("close")[-1]["reason"] == "finished"
    return {event["cell_key"]: event for event in final}


def _table(sweep: ClusterSweep, ends: dict[str, Event], epochs: int) -> None:
    table = results.table(sweep.sweep_dir())
    assert sorted(table["cell_key"]) == sorted(ends)
    assert set(table["outcome"]) == {"done"}
    assert set(table["epochs"]) == {epochs}


def _mlflow(sweep: ClusterSweep, ends: dict[str, Event], epochs: int) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(sweep.store.uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(experiments, max_results=200, page_token=token)
        runs += page
        token = page.token
        if not token:
            break
    parents = [run for run in runs if "sweep.cell_key" not in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]
    children = [run for run in runs if "sweep.cell_key" in run.data.tags]
    assert Counter(run.data.tags["sweep.cell_key"] for run in children) == dict.fromkeys(ends, 1)
    for run in children:
        end = ends[run.data.tags["sweep.cell_key"]]
        assert run.info.status == STATUS[Outcome(end["outcome"])], run.data.tags
        assert run.data.tags["sweep.outcome"] == end["outcome"]
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        points = client.get_metric_history(run.info.run_id, "valid/ndcg_at_10")
        assert sorted(point.step for point in points) == list(range(1, epochs + 1)), run.data.tags
    return len(children)


def _undisturbed(sweep: ClusterSweep, ends: dict[str, Event], epochs: int) -> None:
    """Against the same cells trained here, one after the other, without Ray."""
    path = drive.make_data(sweep.directory)
    cells = sweep.events("cell")
    work = [
        (path, cell["parameters"]["train.batch_size"], epochs, 1e-3, cell["parameters"]["train.seed"]) for cell in cells
    ]
    # Spawned: this process holds threads of other libraries, which a fork would not carry over.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for cell, alone in zip(cells, pool.map(_alone, work, chunksize=4), strict=True):
            told = untimed(ends[cell["cell_key"]]["metrics"])
            assert {key: told.get(key) for key in alone} == alone, cell["label"]


def _alone(run: tuple[Path, int, int, float, int]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    return untimed(train(drive.make_run(*run), device="cpu").metrics)


def _quiet(sweep: ClusterSweep, allowed: Sequence[str]) -> None:
    known = re.compile("|".join(["interrupted: writing down", *allowed]))
    lines = [line for text in sweep.said for line in text.splitlines()]
    loud = [line for line in lines if TROUBLE.search(line) and not known.search(line)]
    assert not loud, "the driver said:\n" + "\n".join(loud[:20])


def _name(cell: Event) -> str:
    size, seed = cell["parameters"]["train.batch_size"], cell["parameters"]["train.seed"]
    return str(size) if seed == drive.SEED else f"{size}.{seed}"
