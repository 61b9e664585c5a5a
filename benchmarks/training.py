"""Training at the speed of the hardware: an epoch of every loss, captured and eager, beside what the loss takes of it.

`python -m benchmarks.training` needs a GPU. Data: `benchmarks.steps.synthetic` (27,516 users, 173,511 items, 2.28
million interactions, shuffled, ragged), SASRec of length 200, width 64, 2 blocks, 1 head, dropout 0.3; training only.
Of each configuration, in one process and one run:

captured   an epoch as `seqrec.train` trains on a GPU (bf16, losses by kernels, or with `--kernels eager` by PyTorch's
           operations and then `steps` of it where the loss makes a whole one long), after one that made its graphs
no loss    the same with a stand-in for the loss that gives gradients of states and a zero gradient of the item table,
           and takes the loss's negatives: data, encoder, optimiser, gaps
eager      the reference: operation by operation, fp32; its step timed over the first batches, the epoch extrapolated
first step from nothing to the end of a new cell's first step in a process that has run another cell

Both loss curves are recorded, means of 20 steps of the first 200 steps, and compared; a configuration whose curves
differ by more than 3 % is an error and no row. `--grid` times cells of RECE's published grid instead, which have no
eager twin to be compared with: their kernels are compared in the tests and by `python -m benchmarks losses`. Rows go to
`benchmarks/results/training.csv`, curves to `training_curves.csv` beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import rows
from benchmarks.part_of_epoch import run_part
from benchmarks.steps import synthetic
from seqrec import config, meters
from seqrec.captured import CapturedEngine
from seqrec.data.batches import Plan
from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.data.tables import Split
from seqrec.engine import Engine
from seqrec.losses.base import Loss, Pass
from seqrec.train import build_engine, models, seeding

CASES: list[tuple[str, int, dict[str, Any], float | None, int]] = [
    ("rece", 8, {"n_buckets": 87, "n_extra_chunks": 1, "rounds": 1}, 4.0, 430),
    ("rece", 128, {"n_buckets": 350, "n_extra_chunks": 1, "rounds": 1}, 0.6, 430),
    ("rece", 128, {"n_buckets": 583, "n_extra_chunks": 3, "rounds": 8}, 1.5, 40),
    ("bce", 128, {"n_negatives": 256}, 1.0, 430),
    ("ce_minus", 128, {"n_negatives": 256}, 0.8, 430),
    ("sce", 128, {"n_buckets": 202, "bucket_size_x": 202, "bucket_size_y": 256, "mix_x": True}, 0.6, 430),
    ("sce", 8, {"n_buckets": 50, "bucket_size_x": 50, "bucket_size_y": 256, "mix_x": True}, 4.0, 430),
    ("ce", 64, {}, 1.5, 150),
    ("bce", 128, {"n_negatives": 1}, None, 430),
    ("gbce", 128, {"n_negatives": 256}, None, 430),
    ("cce_minus", 128, {"n_negatives": 511}, None, 430),
    ("ce", 1024, {}, None, 430),
]
"""(loss, batch size, keys, budget of an epoch in seconds, most steps that are timed with the eager loss)."""

GRID = [
    # Batch size, extra chunks, rounds, steps.
    (4, 0, 1, 400), (4, 3, 8, 200), (4, 1, 128, 40), (16, 10, 8, 200), (16, 0, 32, 100), (64, 1, 16, 100),
    (64, 3, 128, 20), (256, 3, 4, 80), (1024, 0, 8, 20), (1024, 5, 32, 10), (4096, 1, 2, 6), (4096, 1, 128, 4),
]  # fmt: skip
"""Corners and middle of RECE's published grid (`search_spaces/rece.yaml`)."""


def of_grid(batch_size: int, extra: int, rounds: int, n_items: int, per_user: float) -> dict[str, Any]:
    """Keys of a cell, as its grid derives them."""
    n_buckets = int((4.0 * (1 + 2 * extra) * min(n_items, batch_size * per_user)) ** 0.5)
    return {"n_buckets": n_buckets, "n_extra_chunks": extra, "rounds": rounds}


CURVE_STEPS, CURVE_MEAN, CURVE_BOUND = 200, 20, 0.03
EAGER_SECONDS = 6.0
"""The eager twin runs this long, or for the curve's steps if that is longer in coming, at least 20."""


class NoLoss(Loss):
    """Takes what a loss takes and gives what it gives, at almost no cost."""

    def __init__(self, request: NegativesRequest | None) -> None:
        super().__init__()
        self.request = request

    def prepare(self, *arguments: object, **fixed: Tensor) -> Pass:
        raise AssertionError("gives no value")

    def value_and_gradients(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None = None,
        generator: torch.Generator | None = None,
        weights_N: Tensor | None = None,
        **fixed: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden = hidden_ND.detach()
        return hidden[0, 0].clone(), hidden * 1e-4, torch.zeros_like(item_embeddings_VD, requires_grad=False)


def build(split: Split, run: config.Run, loss: Loss | None = None) -> Engine:
    device = torch.device("cuda")
    seeding.seed_weights(run.train.seed)
    model = models.build(run.model, split.n_items).to(device)
    engine = build_engine(run, split, model, device)
    if loss is not None:
        engine.loss = loss
    return engine


def timed(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def run_of(name: str, batch_size: int, keys: dict[str, Any], **training: Any) -> config.Run:
    return config.parse(
        {
            "data": {"path": "synthetic"},
            "model": {"name": "sasrec"},
            "loss": {"name": name, **keys},
            "train": {"batch_size": batch_size, "drop_last": True, **training},
        }
    )


def eager_curve(engine: Engine, n_batches: int) -> tuple[list[float], float, int]:
    """(losses, seconds a step, peak bytes) of the eager twin's first steps; the first ten are not timed."""
    generators = seeding.begin_epoch(engine.seed, 1, engine.device)
    engine.model.train()
    losses: list[Tensor] = []
    torch.cuda.reset_peak_memory_stats()
    start = begun = time.perf_counter()
    for number, batch in enumerate(islice(engine.batches.epoch(1), min(CURVE_STEPS, n_batches))):
        if number == 10:
            torch.cuda.synchronize()
            start = time.perf_counter()
        losses.append(engine._step(batch, generators))
        if number >= 20 and number % 20 == 19:
            torch.cuda.synchronize()
            if time.perf_counter() - begun > EAGER_SECONDS:
                break
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / (len(losses) - 10)
    return torch.stack(losses).tolist(), seconds, torch.cuda.max_memory_allocated()


def means(losses: list[float]) -> list[float]:
    whole = len(losses) // CURVE_MEAN * CURVE_MEAN
    return [sum(losses[i : i + CURVE_MEAN]) / CURVE_MEAN for i in range(0, whole, CURVE_MEAN)]


def steps_of(split: Split, run: config.Run, loss: Loss | None, n_steps: int) -> dict[str, Any]:
    """What the first `n_steps` steps of a captured epoch take, after an epoch's beginning that made the graphs."""
    meters.release(torch.device("cuda"))
    start = time.perf_counter()
    epoch(build(split, run, loss), 1, 1)
    first_step_s = time.perf_counter() - start
    meters.release(torch.device("cuda"))
    engine = build(split, run, loss)
    assert isinstance(engine, CapturedEngine)
    n_batches = len(engine.batches)
    n_steps = min(n_steps, n_batches)
    epoch(engine, 1, max(n_steps, min(CURVE_STEPS, 5 * n_steps)))
    assert engine.step_losses is not None
    curve = engine.step_losses.tolist()
    torch.cuda.reset_peak_memory_stats()
    seconds = timed(lambda: epoch(engine, 2, n_steps))
    return {
        "curve": curve,
        "step_s": seconds / n_steps,
        "n_batches": n_batches,
        "n_steps": n_steps,
        "peak_bytes": engine.peak_bytes(torch.cuda.max_memory_allocated()),
        "graphs": len(engine._graphs),
        "first_step_s": first_step_s,
        "request": engine.loss.request,
    }


def epoch(engine: Engine, number: int, n_steps: int) -> None:
    """The first steps of an epoch."""
    run_part(engine, number, lambda plan: Plan(plan.users, plan.sizes[:n_steps]))
    torch.cuda.synchronize()


def measure_alone(split: Split, name: str, batch_size: int, keys: dict[str, Any], most_steps: int) -> dict[str, object]:
    """A row without the eager twin, which such a cell would take hours or more memory than there is."""
    whole = steps_of(split, run_of(name, batch_size, keys), None, most_steps)
    bare = steps_of(split, run_of(name, batch_size, keys), NoLoss(whole["request"]), most_steps)
    return _row(name, "fused", batch_size, keys, whole, bare)


def _row(
    name: str, kernels: str, batch_size: int, keys: dict[str, Any], whole: dict[str, Any], bare: dict[str, Any]
) -> dict[str, object]:
    n_batches = whole["n_batches"]
    return {
        "loss": name,
        "kernels": kernels,
        "batch_size": batch_size,
        "keys": _text(keys),
        "steps": whole["n_steps"],
        "epoch_s": round(whole["step_s"] * n_batches, 3),
        "without_loss_s": round(bare["step_s"] * n_batches, 3),
        "loss_share": round(1 - bare["step_s"] / whole["step_s"], 3),
        "budget_s": None,
        "step_ms": round(whole["step_s"] * 1e3, 3),
        "without_loss_ms": round(bare["step_s"] * 1e3, 3),
        "peak_bytes": whole["peak_bytes"],
        "eager_step_ms": None,
        "eager_epoch_s": None,
        "eager_peak_bytes": None,
        "curves_apart": None,
        "graphs": whole["graphs"],
        "first_step_s": round(whole["first_step_s"], 3),
    }


def measure(
    split: Split,
    kernels: str,
    name: str,
    batch_size: int,
    keys: dict[str, Any],
    budget_s: float | None,
    most_steps: int,
) -> dict[str, object]:
    """One configuration's row, without its conditions. Raises AssertionError if the curves differ."""
    run = run_of(name, batch_size, keys, kernels=kernels)
    whole = steps_of(split, run, None, most_steps if kernels == "eager" else 10**9)
    bare = steps_of(split, run, NoLoss(whole["request"]), 10**9)
    meters.release(torch.device("cuda"))
    eager = build(split, run_of(name, batch_size, keys, engine="eager"))
    eager_losses, eager_step_s, eager_peak = eager_curve(eager, whole["n_batches"])
    pairs = list(zip(means(whole["curve"][: len(eager_losses)]), means(eager_losses), strict=True))
    apart = max(abs(one / other - 1) for one, other in pairs)
    assert apart <= CURVE_BOUND, f"loss curves differ by {apart:.1%}: {pairs}"
    for number, (one, other) in enumerate(pairs):
        place = {"loss": name, "kernels": kernels, "batch_size": batch_size, "keys": _text(keys)}
        place |= {"from_step": number * CURVE_MEAN}
        CURVES.append({**place, "captured": round(one, 6), "eager": round(other, 6)})
    return _row(name, kernels, batch_size, keys, whole, bare) | {
        "budget_s": budget_s,
        "eager_step_ms": round(eager_step_s * 1e3, 3),
        "eager_epoch_s": round(eager_step_s * whole["n_batches"], 2),
        "eager_peak_bytes": eager_peak,
        "curves_apart": round(apart, 5),
    }


CURVES: list[dict[str, object]] = []


def _text(keys: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in keys.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    parser.add_argument("--grid", action="store_true", help="instead cells of RECE's grid, without eager twins")
    parser.add_argument(
        "--kernels", choices=["fused", "eager"], default="fused", help="train.kernels of the captured step"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure.", file=sys.stderr)
        return 2
    split = synthetic()
    # Kernels are compiled once a machine, not once a cell: another cell first.
    build(split, run_of("gbce", 128, {"n_negatives": 1})).run_epoch(1)
    failed = 0
    work: list[tuple[object, Callable[[], dict[str, object]]]]
    if options.grid:
        per_user = split.statistics.n_interactions / split.statistics.n_users
        cells = [("rece", cell[0], of_grid(*cell[:3], split.n_items, per_user), cell[3]) for cell in GRID]
        work = [(cell, partial(measure_alone, split, *cell)) for cell in cells]
    else:
        cases = [CASES[number] for number in options.only] if options.only else CASES
        work = [(case, partial(measure, split, options.kernels, *case)) for case in cases]
    for case, measured in work:
        try:
            row = measured()
        except (AssertionError, torch.OutOfMemoryError) as error:
            print(f"{case}: {error}", file=sys.stderr)
            failed += 1
            continue
        conditions = rows.conditions()
        rows.append("training", {**row, **conditions}, options.results)
        for point in CURVES:
            rows.append("training_curves", {**point, **conditions}, options.results)
        CURVES.clear()
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
