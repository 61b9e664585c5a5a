"""One training run, from a configuration to its test metrics. `python -m seqrec.train run.yaml` runs one by hand."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from seqrec import data, feasibility, losses, memory, meters, models, seeding, trainer, yamlfile
from seqrec.config import NUMERICS_VERSION, SELECTION_METRIC, Bert4rec, Run, Train, parse
from seqrec.data.batches import Batches, CausalBatches, DeviceSequences
from seqrec.data.cloze import ClozeBatches
from seqrec.data.negatives import NegativeSampler
from seqrec.data.resident import Resident
from seqrec.data.tables import Holdout, Split
from seqrec.engine import Engine
from seqrec.errors import ConfigError, SeqrecError, UserError, message
from seqrec.evaluate import evaluate
from seqrec.losses import Loss
from seqrec.models import SequenceModel
from seqrec.reports import EpochReport, Metrics, RunReport
from seqrec.trainer import EVERY_EPOCH, Fitted, Keep, OnEpoch

EVERY_S = 30.0
"""Seconds between checkpoints, of a run by hand."""


def train(
    run: Run,
    *,
    split: Split | None = None,
    on_epoch: OnEpoch | None = None,
    workdir: Path | None = None,
    device: str | None = None,
    keep: Keep = EVERY_EPOCH,
    resident: Resident | None = None,
) -> RunReport:
    """Trains `run`, reloads the weights of its best validation and measures them on the test items, once.

    split: the data set, if the caller holds it already (several runs of one process). on_epoch, workdir, keep: as in
    `trainer.fit`; with a workdir, an interrupted run goes on where it stopped. device: torch's name for it; None: CUDA
    if there is one. resident: keeps the training set on the device for the next run of the process. Raises UserError
    before anything is trained, DivergedError, CheckpointError, and torch's OutOfMemoryError.
    """
    place = device_of(device)
    _choice(run.train, place)
    if split is None:
        split = data.load(run.data)
    feasibility.check(run, split.statistics)
    meters.release(place)
    resident = resident or Resident()
    with meters.current(place), seeding.isolated(place), _dropped_without_memory(resident):
        held = resident.of(split.train, place)
        seeding.seed_weights(run.train.seed)
        model = models.build(run.model, split.n_items).to(place)
        engine = build_engine(run, split, model, place, held)
        fitted = trainer.fit(
            engine,
            lambda: _evaluate(run, split, model, split.valid, lists=False),
            run.train,
            on_epoch=on_epoch,
            workdir=workdir,
            identity={"run": run.identity(), "data": split.statistics.digest, "numerics": NUMERICS_VERSION},
            keep=keep,
        )
        model.load_state_dict(fitted.best_weights)
        test = _evaluate(run, split, model, split.test, lists=True)
    predicted_gib = memory.predict_peak(run, split.statistics).peak_bytes / meters.GIB
    metrics = _summary(fitted) | {f"test/{name}": value for name, value in test.items()}
    metrics["memory/predicted_gib"] = predicted_gib
    return RunReport(len(fitted.history), fitted.stopped_early, metrics, fitted.history)


@contextmanager
def _dropped_without_memory(resident: Resident) -> Iterator[None]:
    """A process that ran out of memory keeps nothing on the device."""
    try:
        yield
    except torch.OutOfMemoryError:
        resident.drop()
        raise


def build_engine(
    run: Run, split: Split, model: SequenceModel, device: torch.device, held: DeviceSequences | None = None
) -> Engine:
    """What trains `model`, which is on the device already: its loss, its negatives and its batches. held:
    `split.train`, where that is on the device too."""
    engine = _choice(run.train, device)
    precision = run.train.precision
    lowered = precision == "bf16" or (precision == "auto" and engine == "captured")
    low = torch.bfloat16 if lowered else torch.float32
    width = model.item_embeddings().shape[1]
    loss = _loss(run, split, width, device, engine, low).to(device)
    sampler = None
    if loss.request is not None:
        sampler = NegativeSampler(loss.request, split.train, split.n_items, split.item_counts, device)
    batches = _batches(run, split, device, held)
    if engine == "eager":
        return Engine(model, loss, sampler, batches, run.train, device, low)
    from seqrec.captured import CapturedEngine  # brings triton, which a CPU does not need

    return CapturedEngine(model, loss, sampler, batches, run.train, device, low)


def _choice(settings: Train, device: torch.device) -> Literal["eager", "captured"]:
    if settings.engine == "auto":
        return "captured" if device.type == "cuda" else "eager"
    if settings.engine == "captured" and device.type != "cuda":
        raise UserError(message("train.engine", "captured", f"auto or eager on {device}, which has no graphs"))
    return settings.engine


def _loss(run: Run, split: Split, width: int, device: torch.device, engine: str, low: torch.dtype) -> Loss:
    if run.train.kernels == "eager" or (run.train.kernels == "auto" and (engine, low) != ("captured", torch.bfloat16)):
        return losses.build(run.loss, split.n_items)
    from seqrec.losses import fused  # brings triton, which a CPU does not need

    broken = fused.why_not(device, width, low, run.loss)
    if broken is None:
        return fused.build(run.loss, split.n_items, item_counts=split.item_counts)
    if run.train.kernels == "fused":
        raise UserError(message("train.kernels", "fused", broken))
    logging.getLogger(__name__).warning("train.kernels: auto takes eager here; fused needs %s.", broken)
    return losses.build(run.loss, split.n_items)


def _batches(run: Run, split: Split, device: torch.device, held: DeviceSequences | None) -> Batches:
    """What the run's model is trained on."""
    kind: Callable[..., Batches] = CausalBatches
    if isinstance(run.model, Bert4rec):
        kind = partial(ClozeBatches, mask_probability=run.model.mask_probability)
    return kind(
        split.train,
        max_length=run.model.max_length,
        batch_size=run.train.batch_size,
        drop_last=run.train.drop_last,
        seed=run.train.seed,
        device=device,
        held=held,
    )


def _evaluate(run: Run, split: Split, model: SequenceModel, holdout: Holdout, *, lists: bool) -> Metrics:
    """lists: also what needs each user's list of recommendations (coverage, surprisal), not just the target's rank."""
    return evaluate(
        model,
        holdout,
        n_items=split.n_items,
        max_length=run.model.max_length,
        exclude_seen=run.evaluation.exclude_seen,
        batch_size=run.evaluation.batch_size,
        device=model.item_embeddings().device,
        lists=lists,
        item_counts=split.item_users,
        n_train_users=len(split.train),
        memory_bytes=run.evaluation.memory_bytes,
        kernels=False if run.train.engine == "eager" else None,
    )


def _summary(fitted: Fitted) -> Metrics:
    """The metrics of a run that its epochs decide; memory is the peak over all of them."""
    best, last = fitted.best, fitted.history[-1]
    metrics: Metrics = {"best/epoch": best.epoch, "best/elapsed_s": best.metrics["time/elapsed_s"]}
    metrics |= {
        "best/" + name.removeprefix("valid/"): value
        for name, value in best.metrics.items()
        if name.startswith("valid/")
    }
    for name in ("memory/peak_gib", "memory/reserved_gib", "memory/evaluation_gib", "memory/state_gib"):
        values = [report.metrics[name] for report in fitted.history if name in report.metrics]
        if values:
            metrics[name] = max(values)
    metrics["time/epoch_s"] = statistics.median(report.metrics["time/epoch_s"] for report in fitted.history)
    metrics["time/elapsed_s"] = last.metrics["time/elapsed_s"]
    return metrics


def device_of(name: str | None) -> torch.device:
    """torch's device of that name; None: CUDA if there is one. Raises UserError for one that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(message("device", name, "cpu, cuda or cuda:<number>")) from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(message("device", name, "cpu, cuda or cuda:<number>"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(message("device", name, f"one of the {torch.cuda.device_count()} CUDA devices of this machine"))
    return device


def main(arguments: Sequence[str] | None = None) -> int:
    """Epochs to stderr, the metrics as JSON to stdout. Exit code 2: a mistake in the arguments or the file."""
    parser = argparse.ArgumentParser(prog="python -m seqrec.train", description="Train one configuration.")
    parser.add_argument("run", type=Path, help="YAML with the sections data, model, loss, train, evaluation")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default CUDA if there is one")
    parser.add_argument("--workdir", type=Path, help="keeps a checkpoint here, and goes on from the one found here")
    parser.add_argument(
        "--checkpoint-every-s",
        type=float,
        default=EVERY_S,
        metavar="S",
        help="seconds of training that a crash may cost; 0: every epoch (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="overrides a key of the file: --set train.seed=37",
    )
    options = parser.parse_args(arguments)
    try:
        tree = yamlfile.load(options.run)
        for assignment in options.set:
            _override(tree, assignment)
        run = parse(tree, str(options.run))
        keep = Keep(every_s=options.checkpoint_every_s, the_end=True)
        report = train(run, on_epoch=_print_epoch, workdir=options.workdir, device=options.device, keep=keep)
    except SeqrecError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    result = {"epochs": report.epochs, "stopped_early": report.stopped_early, "metrics": report.metrics}
    print(json.dumps(result, indent=2))
    return 0


def _override(tree: dict[str, object], assignment: str) -> None:
    """Sets one dotted key; the value is read as YAML reads it."""
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(message("--set", assignment, "KEY=VALUE, as in train.seed=37"))
    *sections, name = key.split(".")
    place = tree
    for section in sections:
        below = place.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(message(f"--set {key}", below, f"a mapping at {section}"))
        place = below
    place[name] = yamlfile.loads(f"value: {text}", f"--set {assignment}")["value"]


def _print_epoch(report: EpochReport) -> None:
    metrics = report.metrics
    words = [f"epoch {report.epoch}", f"train/loss {metrics['train/loss']:.4f}"]
    if SELECTION_METRIC in metrics:
        words.append(f"{SELECTION_METRIC} {metrics[SELECTION_METRIC]:.5f}{' best' if report.is_best else ''}")
    words.append(f"{metrics['time/epoch_s']:.1f} s")
    print("  ".join(words), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
