"""One Ray Tune experiment over the cells of a feed; what it makes of them is in the ledger, not in what it returns."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps import cluster  # first: it sets the switches that Ray reads when it is imported
from sweeps.launch import Launch
from sweeps.scheduler import LaunchScheduler, LaunchSearcher, LaunchStopper

from ray import tune  # isort: skip

from seqrec.data.tables import Split
from sweeps import trial
from sweeps.feed import Feed
from sweeps.trial import Settings

NO_LIMIT = 10_000
"""Trials that Tune may hold in waiting; the feed gives it no more than can run."""
LOOK_S = 2.0
"""How old a look at the cluster may be: nodes come and go, and every look asks Ray's head."""


class Slots:
    """How many trials of a share of a GPU the cluster holds. cpus: of each trial."""

    def __init__(self, cpus: float) -> None:
        self._cpus = cpus
        self._known: dict[float, int] = {}
        self._since = -LOOK_S

    def __call__(self, share: float) -> int:
        if time.monotonic() - self._since >= LOOK_S:
            self._known.clear()
            self._since = time.monotonic()
        if share not in self._known:
            self._known[share] = cluster.slots(self._cpus, share)
        return self._known[share]


def fit(
    launch: Launch,
    feed: Feed,
    splits: Mapping[str, Split],
    settings: Settings,
    *,
    cpus: float,
) -> None:
    """Run what the feed hands over, until it has nothing more or the launch asks to stop.

    splits: by the JSON text of a run's data section; sent once to every node.
    """
    runs = {key: cell.run.model_dump_json() for key, cell in feed.waiting.items()}
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(NO_LIMIT)

    def resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        gpu = config["gpu_share"]
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpu} if gpu else {"CPU": cpus}])

    trainable = tune.with_parameters(trial.run, runs=runs, splits=dict(splits), settings=settings)
    searcher = LaunchSearcher(feed)
    share = max(map(feed.share, feed.waiting.values()), default=0.0)
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    try:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=LaunchScheduler(launch, searcher), num_samples=-1, reuse_actors=True
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
