"""One cell on a worker: training's epochs go to the driver as messages, and so does every way in which it can end.

A worker process serves many cells. When the driver stops a trial, `tune.report` raises SystemExit inside training,
which unwinds and ends its thread before the process takes the next cell; nothing here may catch it. An exception
becomes the trial's last message, so that the process lives on, unless it left the CUDA context unusable: then it goes
to Ray, which replaces the process.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from seqrec.config import Run
from seqrec.data.tables import Split
from seqrec.reports import EpochReport, Metrics, RunReport
from sweeps import outcomes
from sweeps.outcomes import Outcome

if TYPE_CHECKING:
    from seqrec.data.resident import Resident

Trainer = Callable[..., RunReport]
"""`seqrec.train.train`, or what stands in for it: (run, *, split, on_epoch, workdir, device)."""

CHECKPOINT_NAME = "last.pt"
"""As in `seqrec.trainer`, which would import torch here."""

PEAK = "memory/peak_gib"

MESSAGE = "message"
"""The only key of a result: one JSON text, which Tune carries without looking into it."""


@dataclass(frozen=True)
class Settings:
    """What every trial of a launch shares."""

    checkpoints: Path
    """A folder for each cell."""
    threads: int
    trainer: Trainer | None = None
    """None: `seqrec.train.train`."""
    checkpoint_every_s: float = 0.0
    """As in `seqrec.trainer.Keep`; this and the next are for `seqrec.train.train` alone."""
    rungs: tuple[int, ...] = ()
    """Epochs from which on, at its next validation, the driver may end a trial."""


def run(
    config: Mapping[str, Any],
    runs: Mapping[str, str],
    splits: Mapping[str, Split],
    settings: Settings,
) -> None:
    """The Ray trainable. config: the cell_key, and gpu_share, the part of a GPU that the trial was given; 0 on CPU.

    runs: cell_key -> run as JSON text. splits: the run's data section as JSON text -> prepared data.
    """
    key, gpu_share = config["cell_key"], config["gpu_share"]
    _settle()
    _limit(settings.threads, gpu_share)
    workdir = settings.checkpoints / key
    started = {"node": socket.gethostname(), "pid": os.getpid(), "from_epoch": _epochs_in(workdir / CHECKPOINT_NAME)}
    _send("start", **started, gpu_share=gpu_share)
    device = "cuda" if gpu_share else "cpu"
    last = _train(
        Run.model_validate_json(runs[key]),
        splits,
        workdir,
        device,
        settings.trainer or partial(_seqrec, settings=settings),
    )
    _send("end", **last)


def _train(run: Run, splits: Mapping[str, Split], workdir: Path, device: str, trainer: Trainer) -> dict[str, Any]:
    """The last message: how training ended. Raises only what must reach Ray."""
    epochs, peak_gib = 0, 0.0

    def on_epoch(report: EpochReport) -> None:
        nonlocal epochs, peak_gib
        epochs, peak_gib = report.epoch, max(peak_gib, report.metrics.get(PEAK, 0.0))
        _send("epoch", epoch=report.epoch, metrics=_plain(report.metrics))

    try:
        split = _at_hand(run.data.model_dump_json(), splits)
        report = trainer(run, split=split, on_epoch=on_epoch, workdir=workdir, device=device)
    except Exception as error:
        if device == "cuda" and _context_is_lost():
            raise
        outcome = Outcome.INTERRUPTED if outcomes.is_full_disk(error) else outcomes.of(error)
        reached = {PEAK: max(peak_gib, _peak_gib())} if outcome is Outcome.OOM and device == "cuda" else {}
        return {"outcome": outcome, "reason": outcomes.reason(error), "epochs": epochs, "metrics": reached}
    metrics = _plain(report.metrics)
    return {"outcome": Outcome.DONE, "reason": "", "epochs": report.epochs, "metrics": metrics}


def _send(kind: str, **fields: Any) -> None:
    tune.report({MESSAGE: json.dumps({"kind": kind, **fields})})


def _plain(metrics: Metrics) -> Metrics:
    return {key: float(value) for key, value in metrics.items()}


def _seqrec(run: Run, *, settings: Settings, **options: Any) -> RunReport:
    from seqrec.train import train
    from seqrec.trainer import Keep

    keep = Keep(settings.checkpoint_every_s, pauses(run, settings.rungs))
    return train(run, resident=_resident(), keep=keep, **options)


def pauses(run: Run, rungs: Iterable[int]) -> frozenset[int]:
    """Epochs at which a rule with these rungs may end the run's trial."""
    every, last = run.train.valid_every, run.train.epochs
    return frozenset(min(last, -(-rung // every) * every) for rung in rungs)


@cache
def _resident() -> Resident:
    """What the cells of this process leave each other: the training set on the device, and nothing else."""
    from seqrec.data.resident import Resident

    return Resident()


_held: dict[str, Split] = {}
"""The data of this process's cells, by the JSON text of a run's data section; one entry."""


def _at_hand(key: str, splits: Mapping[str, Split]) -> Split:
    """The data of a cell: the object that an earlier cell of the process used, with what was worked out of it and is
    kept on the device. Ray makes another one of the same content for every cell."""
    split = splits[key]
    if key not in _held or _held[key].statistics != split.statistics:
        _held.clear()
        _held[key] = split
    return _held[key]


def _epochs_in(path: Path) -> int:
    """Epochs in a checkpoint; 0 without one, or if training is going to refuse it."""
    import torch

    try:
        return len(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["history"])
    except (OSError, RuntimeError, ValueError, LookupError, TypeError):
        return 0


def _limit(threads: int, gpu_share: float) -> None:
    """Cores of the trial; and its part of the GPU's memory, so that who outgrows it fails alone."""
    import torch

    torch.set_num_threads(threads)
    if gpu_share:
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_share))


@cache
def _freeze_imports() -> None:
    """Once a process: what the imports made is never garbage, and looking through it takes 0.1 s a collection."""
    # What a training loads, and what torch's optimisers load when they are first used.
    for name in ("seqrec.train", "torch._dynamo"):
        import_module(name)
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries complain at the end of what they could not take down


def _settle() -> None:
    """Drop what the cell before left: garbage first, then what libraries hold for it, then the allocator's cache."""
    import torch

    from seqrec import meters

    _freeze_imports()
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        meters.forget_workspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_gib() -> float:
    """Most memory that this process held in tensors at a time since the piece of work began that ran out of it."""
    import torch

    return float(torch.cuda.max_memory_allocated() / 2**30)


def _context_is_lost() -> bool:
    """Whether the CUDA context no longer works: after an illegal access, say, all further calls fail."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
