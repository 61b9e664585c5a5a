"""One Ray Tune experiment over some cells; what it makes of them is in the ledger, not in what it returns."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps import cluster  # first: it sets the switches that Ray reads when it is imported
from sweeps.launch import Launch
from sweeps.scheduler import LaunchScheduler, LaunchStopper

from ray import tune  # isort: skip

from seqrec.data.tables import Split
from sweeps import trial
from sweeps.cells import Cell
from sweeps.trial import Settings


def fit(
    launch: Launch,
    cells: Sequence[Cell],
    splits: Mapping[str, Split],
    settings: Settings,
    *,
    cpus: float,
    gpu_shares: Mapping[str, float],
    max_concurrent: int | None,
) -> None:
    """Run the cells, in their order, until all have ended or the launch asks to stop.

    splits: by the JSON text of a run's data section; sent once to every node. gpu_shares: by cell_key.
    """
    runs = {cell.cell_key: cell.run.model_dump_json() for cell in cells}
    share = max(gpu_shares.values(), default=0.0)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(16, 2 * cluster.slots(cpus, share)))

    def resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        gpu = gpu_shares.get(config["cell_key"], 0.0)
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpu} if gpu else {"CPU": cpus}])

    trainable = tune.with_parameters(
        trial.run, runs=runs, splits=dict(splits), settings=settings, gpu_shares=gpu_shares
    )
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    try:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"cell_key": tune.grid_search(list(runs))},
            tune_config=tune.TuneConfig(
                scheduler=LaunchScheduler(launch), reuse_actors=True, max_concurrent_trials=max_concurrent
            ),
            run_config=tune.RunConfig(
                name="cells",
                storage_path=str(folder),
                stop=LaunchStopper(launch, lambda: cluster.serves(cpus, share)),
                failure_config=tune.FailureConfig(max_failures=-1),  # the launch knows when to give up
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
