"""Trainings that have the hardware to themselves, for their times: one on each whole GPU, on CPUs one in all. Ray's
part of `sweeps.retime`.

A whole GPU is Ray's: no other trial of the cluster is on it. What runs beside Ray, Ray does not know. Nothing here
writes anything.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps import cluster  # first: it sets the switches that Ray reads when it is imported

import ray  # isort: skip

from seqrec.config import Run
from seqrec.data.tables import Split
from seqrec.reports import Metrics

POLL_S = 0.2
PATIENCE_S = 300.0
"""How long to wait for the first whole GPU to become free."""

Measure = Callable[..., Metrics]
"""`seqrec.stopwatch.epochs`, or what stands in for it: (run, *, split, count, device)."""


@dataclass(frozen=True)
class Timed:
    """What one cell's times were taken to be."""

    metrics: Metrics
    node: str
    gpu: str
    """Its name; empty on a CPU."""


class _Place:
    """A process with a whole GPU, or with the cores of one trial."""

    def __init__(self, threads: int, on_gpu: bool, measure: Measure | None) -> None:
        self._threads, self._on_gpu, self._measure = threads, on_gpu, measure

    def ready(self) -> None:
        """Answers once the process has its place."""

    def time(self, run: str, splits: Mapping[str, Split], count: int) -> Timed:
        import torch

        from seqrec import stopwatch

        torch.set_num_threads(self._threads)
        given = Run.model_validate_json(run)
        split = splits[given.data.model_dump_json()]
        device = "cuda" if self._on_gpu else "cpu"
        metrics = (self._measure or stopwatch.epochs)(given, split=split, count=count, device=device)
        gpu = torch.cuda.get_device_name() if self._on_gpu else ""
        return Timed(metrics, socket.gethostname(), gpu)


def each(
    runs: Mapping[str, Run],
    splits: Mapping[str, Split],
    *,
    cpus: float,
    on_gpu: bool,
    epochs: int,
    should_stop: Callable[[], bool],
    on_begin: Callable[[str], None],
    measure: Measure | None = None,
) -> Iterator[tuple[str, Timed | Exception]]:
    """Times of the runs by key, in the order in which they are done; an exception for a run that failed.

    splits: by the JSON text of a run's data section. cpus: of each process. epochs: to time. should_stop: asked several
    times a second; true cuts off what runs. on_begin: called with a key when its run begins. Raises TimeoutError if
    for `PATIENCE_S` no place was free.
    """
    held = ray.put(dict(splits))
    places = min(len(runs), cluster.slots(cpus, 1.0)) if on_gpu else 1
    threads = max(1, int(cpus))
    waiting = list(runs)
    starting: dict[Any, Any] = {}
    """Answer -> process that has no place yet."""
    working: dict[Any, tuple[str, Any]] = {}

    def start() -> None:
        process = ray.remote(_Place).options(num_cpus=cpus, num_gpus=1 if on_gpu else 0)
        made = process.remote(threads, on_gpu, measure)
        starting[made.ready.remote()] = made

    def begin(process: Any) -> None:
        """The next run, or the end of a process that no run is left for."""
        if not waiting:
            ray.kill(process)
            return
        key = waiting.pop(0)
        on_begin(key)
        working[process.time.remote(runs[key].model_dump_json(), held, epochs)] = (key, process)

    since = time.monotonic()
    for _ in range(places):
        start()
    try:
        while (waiting or working) and not should_stop():
            done, _ = ray.wait([*starting, *working], timeout=POLL_S)
            if not done and not working and time.monotonic() - since > PATIENCE_S:
                raise TimeoutError(f"no {'whole GPU' if on_gpu else 'core'} became free in {PATIENCE_S:.0f} s")
            for answer in done:
                if answer in starting:
                    begin(starting.pop(answer))
                    continue
                key, process = working.pop(answer)
                try:
                    result = ray.get(answer)
                except Exception as error:
                    # The next run gets a new process: this one may be dead, or its CUDA context lost.
                    ray.kill(process)
                    since = time.monotonic()
                    if waiting:
                        start()
                    yield key, error
                else:
                    begin(process)
                    yield key, result
    finally:
        for process in [*starting.values(), *(process for _, process in working.values())]:
            ray.kill(process)
