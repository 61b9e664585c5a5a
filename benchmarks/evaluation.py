"""Full ranking, by kernels and without: 5,000 users over large catalogs, 135,119 short sessions; time and peak memory.

`python -m benchmarks.evaluation` needs a GPU; it appends a row a case to `benchmarks/results/evaluation.csv`. Before
anything is timed, ranks and lists in tiles of several shapes, and on CUDA those of the kernel, are held against a dense
twin in float64, on the same device; a difference ends the run. Data: synthetic, seeded; 5,000 histories lognormal(4.1,
0.8) clipped to 20..1500 over 173,511 and 1,000,000 items, targets and items uniform. `--sessions`: instead users,
items and lengths as of the validation of nowplaying, 135,119 histories lognormal(1.62, 0.66) clipped to 1..28 over
60,416 items. Model: SASRec, untrained, length 200 (sessions: 30, without pads), width 64, 2 blocks, 1 head. Ranks: what
a validation asks for; with lists: the test. `kernels` False is the reference, operation by operation; both ways run
side by side, and metrics that differ by over 0.001 (near ties may change places) end the run. Seconds: median, 20th
and 80th percentile, of whole evaluations after a warm-up, the upload of the histories and the encoder included.
`--tiny`: small shapes on any device, without kernels, rows to stdout alone unless `--results` is given.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import rows
from seqrec import config, meters, models, seeding
from seqrec.data.tables import Holdout, IntArray, Sequences, Statistics
from seqrec.evaluate import evaluate
from seqrec.memory.evaluation import Tile, evaluation_bytes, tile_for
from seqrec.metrics import MISS
from seqrec.ranking import Ranker, exact_products, seen_cells


class Case(NamedTuple):
    n_users: int
    n_items: int
    memory_bytes: int
    lists: bool
    kernels: bool
    lengths: tuple[float, float, int, int] = (4.1, 0.8, 20, 1500)
    """Of histories: lognormal mean and deviation, least and most."""
    max_length: int = 200
    mask_padding: bool = False


N_USERS = 5000
CASES = [
    Case(N_USERS, n_items, memory_bytes, lists, kernels)
    for n_items in (173_511, 1_000_000)
    # The smaller budgets take tiles narrower than the larger catalog, in two passes.
    for memory_bytes in (2**28, 2**26, 2**24)
    for lists in (False, True)
    for kernels in (False, True)
]
SESSIONS = [
    Case(135_119, 60_416, 2**28, lists, kernels, (1.62, 0.66, 1, 28), 30, True)
    for lists in (False, True)
    for kernels in (False, True)
]
TINY = [Case(60, 211, 2**16, False, False), Case(60, 5000, 2**16, True, False), Case(60, 5000, 2**24, True, False)]


def made_up(case: Case, seed: int = 0) -> tuple[Holdout, Statistics]:
    """Histories and targets of the module's docstring, and what the prediction needs to know of them."""
    rng = np.random.default_rng(seed)
    n_users, n_items = case.n_users, case.n_items
    mean, deviation, least, most = case.lengths
    lengths = np.clip(rng.lognormal(mean, deviation, n_users), least, most).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(0, n_items, offsets[-1]).astype(np.int32)
    targets = rng.integers(0, n_items, n_users).astype(np.int32)
    sizes, counts = np.unique(lengths, return_counts=True)
    told = Statistics(
        name="synthetic",
        digest="0" * 64,
        n_users=n_users,
        n_interactions=len(items) + 2 * n_users,
        n_items=n_items,
        n_train_users=n_users,
        train_lengths=tuple(zip(sizes.tolist(), counts.tolist(), strict=True)),
        rows=(("train", len(items)), ("valid", n_users), ("test", n_users)),
    )
    return Holdout(Sequences(items, offsets, np.arange(n_users)), targets), told


def check(device: torch.device, n_items: int) -> None:
    """Raises ValueError unless tiles rank as the twin does: whole numbers, many ties, some items seen."""
    rng = np.random.default_rng(1)
    n_users, k = 40, 50
    hidden, table = (rng.integers(-2, 3, (n, 8)).astype(np.float32) for n in (n_users, n_items))
    targets = rng.integers(0, n_items, n_users)
    owners, items = np.repeat(np.arange(n_users), 30), rng.integers(0, n_items, 30 * n_users)
    scores = hidden.astype(np.float64) @ table.astype(np.float64).T
    scores[owners, items] = -np.inf
    expected_ranks, expected_lists = _twin(scores, targets, k)
    whole = -(-n_items // 32) * 32
    for tile in (Tile(n_users, whole, 32), Tile(16, whole // 96 * 32, 32), Tile(n_users, 72, 8)):
        ranker = Ranker(torch.from_numpy(table).to(device), tile, k)
        cells, bounds = seen_cells(owners, items, n_users, tile, n_items)
        seen = torch.split(torch.from_numpy(cells).to(device), np.diff(bounds).tolist())
        for slab, first in enumerate(range(0, n_users, tile.users)):
            part = slice(first, first + tile.users)
            own = seen[slab * ranker.n_tiles : (slab + 1) * ranker.n_tiles]
            with torch.no_grad(), exact_products():
                states, of_part = torch.from_numpy(hidden[part]).to(device), torch.from_numpy(targets[part]).to(device)
                ranks, lists = ranker.rank(states, of_part, own)
            if ranks.tolist() != expected_ranks[part] or lists.tolist() != expected_lists[part]:
                raise ValueError(f"{tile}: got other ranks or lists than the twin's; expected the same.")

    if device.type == "cuda":
        from seqrec.kernels.ranking import catalog_ranks

        on_device = [torch.from_numpy(one).to(device) for one in (hidden, table, targets, items)]
        lengths = torch.full((n_users,), 30, device=device)
        told = {"starts_U": lengths.cumsum(0) - 30, "lengths_U": lengths, "n_seen": 30 * n_users}
        if catalog_ranks(*on_device[:3], seen=on_device[3], **told).tolist() != expected_ranks:
            raise ValueError("catalog_ranks: got other ranks than the twin's; expected the same.")


def _twin(scores: np.ndarray, targets: IntArray, k: int) -> tuple[list[int], list[list[int]]]:
    """Ranks and lists of dense scores (users, items), one user at a time."""
    ranks, lists = [], []
    for row, target in zip(scores, targets.tolist(), strict=True):
        order = np.lexsort((np.arange(len(row)), -row))
        listed = order[row[order] > -np.inf].tolist()
        ranks.append(listed.index(target) + 1 if target in listed else MISS)
        lists.append((listed + [-1] * k)[:k])
    return ranks, lists


def measure(case: Case, device: torch.device, repeats: int) -> tuple[dict[str, object], dict[str, float]]:
    """One case's row, without its conditions, and its metrics."""
    n_users, n_items, memory_bytes, lists = case[:4]
    holdout, told = made_up(case)
    tree = {
        "data": {"path": "synthetic"},
        "model": {"name": "sasrec", "max_length": case.max_length, "mask_padding": case.mask_padding},
        "loss": {"name": "ce"},
        "evaluation": {"memory_bytes": memory_bytes},
    }
    run = config.parse(tree)
    meters.release(device)
    seeding.seed_weights(run.train.seed)
    model = models.build(run.model, n_items).to(device)
    popularity = np.ones(n_items, np.int64)

    def work() -> dict[str, float]:
        return evaluate(
            model,
            holdout,
            n_items=n_items,
            max_length=run.model.max_length,
            exclude_seen=True,
            batch_size=run.evaluation.batch_size,
            device=device,
            lists=lists,
            item_counts=popularity,
            n_train_users=n_users,
            memory_bytes=memory_bytes,
            kernels=case.kernels,
        )

    first = work()
    weights = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    readings = []
    for _ in range(repeats):
        found, reading = meters.measure(work, device)
        if found != first:
            raise ValueError(f"metrics: got {found} after {first}; expected the same from the same weights.")
        readings.append(reading)
    seconds = statistics.quantiles([reading.seconds for reading in readings], n=10, method="inclusive")
    peaks = [reading.peak_bytes - weights for reading in readings if reading.peak_bytes is not None]
    batch = min(run.evaluation.batch_size, n_users)
    tile = tile_for(memory_bytes, batch, n_items, max(config.CUTOFFS) if lists else 0)
    row = {
        "n_users": n_users,
        "n_items": n_items,
        "history": round(len(holdout.history.items) / n_users, 1),
        "lists": lists,
        "kernels": case.kernels,
        "memory_bytes": memory_bytes,
        "tile_users": tile.users,
        "tile_items": tile.items,
        "seconds": round(seconds[4], 4),
        "seconds_p20": round(seconds[1], 4),
        "seconds_p80": round(seconds[7], 4),
        "peak_beyond_weights_bytes": max(peaks) if peaks else "",
        "predicted_bytes": evaluation_bytes(run, told),
    }
    return row, first


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, on a CPU too")
    parser.add_argument("--sessions", action="store_true", help="135,119 short histories instead")
    parser.add_argument("--results", type=Path, help="folder of the rows (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    if not (torch.cuda.is_available() or options.tiny):
        print("no CUDA device: nothing to measure. hint: --tiny runs on a CPU.", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check(device, 300 if options.tiny else 20_011)
    folder = options.results or (None if options.tiny else rows.RESULTS)
    metrics: dict[Case, dict[str, float]] = {}
    for case in TINY if options.tiny else SESSIONS if options.sessions else CASES:
        row, found = measure(case, device, 2 if options.tiny else 7)
        same = metrics.setdefault(case._replace(kernels=False), found)
        if max(abs(found[name] - same[name]) for name in same) > 1e-3:
            raise ValueError(f"metrics: got {found} by kernels after {same}; expected the same but for near ties.")
        if folder is not None:
            rows.append("evaluation", {**row, **rows.conditions()}, folder)
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
