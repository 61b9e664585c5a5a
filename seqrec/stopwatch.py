"""How long an epoch of a run takes: a few of them are trained and nothing else, without validation or checkpoint."""

from __future__ import annotations

import statistics
from functools import partial

from seqrec import feasibility, meters, models, seeding
from seqrec.config import Run
from seqrec.data.tables import Split
from seqrec.reports import Metrics
from seqrec.train import build_engine, device_of


def epochs(run: Run, *, split: Split, count: int, device: str | None = None) -> Metrics:
    """Trains one epoch to get everything ready (graphs, compiled kernels, memory), then `count` more.

    `time/epoch_s` is the median of these, in seconds, as a training's own; `time/step_ms` the same for one step, in
    milliseconds. The model starts from the run's seed and is thrown away. device: as in `seqrec.train.train`. Raises
    what training raises.
    """
    place = device_of(device)
    feasibility.check(run, split.statistics)
    meters.release(place)
    with meters.current(place), seeding.isolated(place):
        seeding.seed_weights(run.train.seed)
        model = models.build(run.model, split.n_items).to(place)
        engine = build_engine(run, split, model, place)
        engine.run_epoch(1)
        seconds = []
        for epoch in range(2, 2 + count):
            _, reading = meters.measure(partial(engine.run_epoch, epoch), place)
            seconds.append(reading.seconds)
    epoch_s = statistics.median(seconds)
    return {"time/epoch_s": epoch_s, "time/step_ms": 1e3 * epoch_s / len(engine.batches)}
