"""Train steps of every loss on a catalog of 173,511 items: time and peak memory, measured beside the prediction.

`python -m benchmarks.steps` needs a GPU; it appends a row a configuration to `benchmarks/results/steps.csv`. Data:
synthetic, seeded, of the size of a published set (27,516 users, user lengths lognormal(4.1, 0.8) clipped to 20..1500,
item popularity rank**-0.8, no sequential structure: for time and memory, not for quality). Model: SASRec, length 200,
width 64, 2 blocks, 1 head. Step time: median over batches in training order after a warm-up, each step waited for.
Peak: most bytes allocated in those steps, weights, gradients and optimiser state included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import rows
from seqrec import config, losses, memory, meters, models, seeding
from seqrec.data.batches import Batch, CausalBatches
from seqrec.data.negatives import NegativeSampler
from seqrec.data.splits import leave_one_out
from seqrec.data.tables import Interactions, Split
from seqrec.engine import Engine

N_USERS, N_ITEMS = 27_516, 173_511

CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("ce", 64, {}),
    ("ce", 128, {}),
    ("cce", 64, {}),
    ("bce", 128, {"n_negatives": 1}),
    ("bce", 128, {"n_negatives": 256}),
    ("bce_plus", 128, {"n_negatives": 256}),
    ("gbce", 128, {"n_negatives": 256}),
    ("ce_minus", 128, {"n_negatives": 256}),
    ("ce_minus", 128, {"n_negatives": 4096}),
    ("cce_minus", 128, {"n_negatives": 511}),
    ("sce", 8, {"n_buckets": 50, "bucket_size_x": 50, "bucket_size_y": 256, "mix_x": True}),
    ("sce", 128, {"n_buckets": 202, "bucket_size_x": 202, "bucket_size_y": 256, "mix_x": True}),
    ("sce", 1024, {"n_buckets": 620, "bucket_size_x": 620, "bucket_size_y": 256}),
    ("rece", 8, {"n_buckets": 87, "n_extra_chunks": 1, "rounds": 1}),
    ("rece", 128, {"n_buckets": 350, "n_extra_chunks": 1, "rounds": 1}),
    ("rece", 128, {"n_buckets": 583, "n_extra_chunks": 3, "rounds": 8}),
]


class _First(CausalBatches):
    """The first batches of an epoch."""

    limit = 30

    def epoch(self, number: int) -> Iterator[Batch]:
        return islice(super().epoch(number), self.limit)


def synthetic(seed: int = 0) -> Split:
    """The data set of the module's docstring, split leave-one-out."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(4.1, 0.8, N_USERS), 20, 1500).astype(np.int64)
    popularity = np.arange(1, N_ITEMS + 1) ** -0.8
    items = rng.choice(N_ITEMS, size=lengths.sum(), p=popularity / popularity.sum())
    items[:N_ITEMS] = rng.permutation(N_ITEMS)
    order = np.concatenate([np.arange(length) for length in lengths])
    users = np.repeat(np.arange(N_USERS), lengths)
    return leave_one_out(Interactions(users, items.astype(np.int64), order, False, "synthetic_173k", "0" * 64))


def measure(split: Split, name: str, batch_size: int, keys: dict[str, Any], device: torch.device) -> dict[str, object]:
    """One configuration's row, without its conditions."""
    tree = {
        "data": {"path": "synthetic"},
        "model": {"name": "sasrec"},
        "loss": {"name": name, **keys},
        "train": {"batch_size": batch_size, "drop_last": True, "engine": "eager"},
    }
    run = config.parse(tree)
    meters.release(device)
    seeding.seed_weights(run.train.seed)
    model = models.build(run.model, split.n_items).to(device)
    loss = losses.build(run.loss, split.n_items).to(device)
    sampler = None
    if loss.request is not None:
        sampler = NegativeSampler(loss.request, split.train, split.n_items, split.item_counts, device)
    batches = _First(split.train, max_length=200, batch_size=batch_size, drop_last=True, seed=1, device=device)
    engine = Engine(model, loss, sampler, batches, run.train, device)
    engine.run_epoch(1)
    times_s: list[float] = []
    inner = engine._step

    def timed(*arguments: Any) -> torch.Tensor:
        start = time.perf_counter()
        result = inner(*arguments)
        torch.cuda.synchronize(device)
        times_s.append(time.perf_counter() - start)
        return result

    engine._step = timed
    _, reading = meters.measure(lambda: engine.run_epoch(2), device)
    assert reading.peak_bytes is not None
    predicted = memory.predict_peak(run, split.statistics).peak_bytes
    step_s = statistics.median(times_s)
    return {
        "loss": name,
        "batch_size": batch_size,
        "keys": " ".join(f"{key}={value}" for key, value in keys.items()),
        "n_items": split.n_items,
        "step_ms": round(step_s * 1e3, 3),
        "epoch_s": round(step_s * len(batches), 2),
        "peak_bytes": reading.peak_bytes,
        "predicted_bytes": predicted,
        "prediction_error": round(predicted / reading.peak_bytes - 1, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure.", file=sys.stderr)
        return 2
    split = synthetic()
    print(f"{split.statistics.n_interactions} interactions, {split.n_items} items")
    for name, batch_size, keys in CASES:
        try:
            row = measure(split, name, batch_size, keys, torch.device("cuda"))
        except torch.OutOfMemoryError as error:
            print(f"{name} batch {batch_size} {keys}: out of memory: {error}", file=sys.stderr)
            continue
        rows.append("steps", {**row, **rows.conditions()}, options.results)
        print(" ".join(f"{value}" for value in row.values()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
