"""Quality of the losses and models on real data, many trainings at a time: `python -m benchmarks.studies beauty`.

beauty      SASRec with ce and sce in the published configurations, leave-one-out, beside the published NDCG@10
bert4rec    a small stated grid of BERT4Rec with ce on the same data; of its best cell by validation, the other seeds
ladder      on MovieLens-1M: bce with one negative, gbce, ce_minus, ce, cce (the order in which papers find them)
nowplaying  all losses on 60,416 items of #nowplaying

Beauty comes with the package; the others are canonical files in `--data`. Every job is one `seqrec.train.train`; worker
processes, several a GPU, take them in an order that gives every configuration its first seed before any has its second.
After `--deadline` seconds no job is started, and none that runs is waited for longer than `--grace`: what was not run
is said, not guessed. Rows go to `benchmarks/results/studies.csv`, one a run; `--summary` prints the means of that file.
Times of jobs that share a GPU are times of a shared GPU, and `sharing` says how many there were.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import rows

SEEDS = (1235, 37, 2451)


@dataclass(frozen=True)
class Configuration:
    study: str
    label: str
    tree: dict[str, Any]
    target: float | None = None
    """Published test NDCG@10."""
    in_grid: bool = False
    """Of a grid whose best cell by validation alone gets more seeds."""


@dataclass(frozen=True)
class Job:
    configuration: Configuration
    seed: int
    fields: dict[str, Any] = field(default_factory=dict)


def studies(data: Path) -> list[Configuration]:
    """Every configuration of every study, longest first within one."""
    beauty = {"path": "amazon_beauty_5core"}
    published = {"name": "sasrec", "n_blocks": 2, "n_heads": 1}
    ce = {"batch_size": 256, "epochs": 200, "patience": 10}
    found = [
        Configuration(
            "beauty", "sce, d64",
            {
                "data": beauty, "model": {**published, "max_length": 200, "hidden_size": 64, "dropout": 0.6},
                "loss": {"name": "sce", "n_buckets": 202, "bucket_size_x": 202, "bucket_size_y": 256},
                "train": {"batch_size": 1024, "epochs": 300, "patience": 50},
            },
            0.0544,
        ),
        *(
            Configuration(
                "beauty", f"ce, d{width}",
                {
                    "data": beauty,
                    "model": {**published, "max_length": 128, "hidden_size": width, "dropout": 0.3},
                    "loss": {"name": "ce"}, "train": ce,
                },
                target,
            )
            for width, target in ((64, 0.0571), (128, 0.0586))
        ),
        *(
            Configuration(
                "bert4rec", f"ce, {head}, d{width}",
                {
                    "data": beauty,
                    "model": {
                        "name": "bert4rec", "max_length": 50, "hidden_size": width, "dropout": 0.3, "head": head,
                        "mask_probability": 0.4,
                    },
                    "loss": {"name": "ce"}, "train": {"batch_size": 256, "epochs": 200, "patience": 15},
                },
                0.0400, in_grid=True,
            )
            for head in ("tied", "untied") for width in (64, 128)
        ),
    ]  # fmt: skip
    ladder = {
        "bce, 1 negative": {"name": "bce", "n_negatives": 1},
        "gbce, 256 negatives": {"name": "gbce", "n_negatives": 256, "gbce_t": 0.75},
        "ce_minus, 256 negatives": {"name": "ce_minus", "n_negatives": 256},
        "ce": {"name": "ce"},
        "cce": {"name": "cce"},
    }
    for label, loss in ladder.items():
        tree = {
            "data": {"path": str(data / "ml_1m_prefix.parquet")},
            "model": {**published, "max_length": 200, "hidden_size": 64, "dropout": 0.2},
            "loss": loss,
            "train": {"batch_size": 128, "epochs": 150, "patience": 10},
        }
        found.append(Configuration("ladder", label, tree))
    losses: dict[str, dict[str, Any]] = {
        "ce": {"name": "ce"},
        "cce": {"name": "cce"},
        "bce, 256 negatives": {"name": "bce", "n_negatives": 256},
        "bce_plus, 256 negatives": {"name": "bce_plus", "n_negatives": 256},
        "gbce, 256 negatives": {"name": "gbce", "n_negatives": 256, "gbce_t": 0.75},
        "ce_minus, 256 negatives": {"name": "ce_minus", "n_negatives": 256},
        "cce_minus, 511 negatives": {"name": "cce_minus", "n_negatives": 511},
        "sce": {"name": "sce", "n_buckets": 100, "bucket_size_x": 100, "bucket_size_y": 256},
        "rece": {"name": "rece", "n_buckets": 170, "n_extra_chunks": 1, "rounds": 1},
    }
    for label, loss in losses.items():
        tree = {
            "data": {"path": str(data / "nowplaying.parquet")},
            "model": {**published, "max_length": 30, "hidden_size": 64, "dropout": 0.3, "mask_padding": True},
            "loss": loss,
            "train": {"batch_size": 512, "epochs": 60, "patience": 4},
        }
        found.append(Configuration("nowplaying", label, tree))
    return found


def work(gpu: int, sharing: int, jobs: Any, results: Any) -> None:
    """A worker process: jobs until there are no more. Sends (study, label, seed, row or error)."""
    import torch

    from seqrec import config, data
    from seqrec.train import train

    torch.set_num_threads(2)
    device = f"cuda:{gpu}" if torch.cuda.is_available() else "cpu"
    splits: dict[str, Any] = {}
    while (job := jobs.get()) is not None:
        configuration, seed = job.configuration, job.seed
        start = time.perf_counter()
        try:
            tree = configuration.tree | {"train": configuration.tree["train"] | {"seed": seed}}
            run = config.parse(tree)
            if run.data.path not in splits:
                splits[run.data.path] = data.load(run.data)
            split = splits[run.data.path]
            report = train(run, split=split, device=device)
        except Exception as error:
            results.put((configuration, seed, f"{type(error).__name__}: {error}"))
            continue
        metrics = report.metrics
        row = {
            "study": configuration.study,
            "configuration": configuration.label,
            "seed": seed,
            "data": split.statistics.name,
            "digest": split.statistics.digest[:16],
            "test_ndcg_at_10": round(metrics["test/ndcg_at_10"], 6),
            "test_hit_rate_at_10": round(metrics["test/hit_rate_at_10"], 6),
            "valid_ndcg_at_10": round(metrics["best/ndcg_at_10"], 6),
            "best_epoch": int(metrics["best/epoch"]),
            "epochs": report.epochs,
            "epoch_s": round(metrics["time/epoch_s"], 4),
            "seconds": round(time.perf_counter() - start, 1),
            "peak_gib": round(metrics["memory/peak_gib"], 4) if "memory/peak_gib" in metrics else "",
            "state_gib": round(metrics["memory/state_gib"], 4) if "memory/state_gib" in metrics else "",
            "evaluation_gib": round(metrics["memory/evaluation_gib"], 4) if "memory/evaluation_gib" in metrics else "",
            "sharing": sharing,
            "published_ndcg_at_10": configuration.target or "",
            "run": run.model_dump_json(exclude={"data", "evaluation"}),
        }
        results.put((configuration, seed, row))


def run(chosen: list[Configuration], options: argparse.Namespace) -> int:
    """Runs all jobs that the deadline allows; how many were not run or failed."""
    context = multiprocessing.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    workers = [
        context.Process(target=work, args=(gpu, options.processes, jobs, results), daemon=True)
        for gpu in range(options.gpus)
        for _ in range(options.processes)
    ]
    for worker in workers:
        worker.start()
    begun = time.monotonic()
    waiting = [Job(configuration, SEEDS[0]) for configuration in chosen]
    later = [Job(c, seed) for seed in SEEDS[1 : options.seeds] for c in chosen if not c.in_grid]
    running: set[tuple[str, str, int]] = set()
    best: dict[str, dict[str, float]] = {}
    missing = 0
    while waiting or later or running:
        late = time.monotonic() - begun > options.deadline
        if not waiting and later:
            waiting, later = later, []
        while waiting and not late and len(running) < len(workers):
            job = waiting.pop(0)
            running.add((job.configuration.study, job.configuration.label, job.seed))
            jobs.put(job)
        if late and (not running or time.monotonic() - begun > options.deadline + options.grace):
            break
        try:
            configuration, seed, row = results.get(timeout=1.0)
        except queue.Empty:
            continue
        running.discard((configuration.study, configuration.label, seed))
        if isinstance(row, str):
            print(f"{configuration.study}: {configuration.label}, seed {seed}: {row}", file=sys.stderr, flush=True)
            missing += 1
            continue
        rows.append("studies", {**row, **rows.conditions()}, options.results)
        print(" ".join(f"{value}" for value in list(row.values())[:12]), flush=True)
        if configuration.in_grid and seed == SEEDS[0]:
            cells = best.setdefault(configuration.study, {})
            cells[configuration.label] = row["valid_ndcg_at_10"]
            grid = [c for c in chosen if c.study == configuration.study and c.in_grid]
            if len(cells) == len(grid):
                winner = max(grid, key=lambda c: cells[c.label])
                later += [Job(winner, other) for other in SEEDS[1 : options.seeds]]
    for study, label, seed in running | {
        (j.configuration.study, j.configuration.label, j.seed) for j in waiting + later
    }:
        print(f"not run to its end: {study}: {label}, seed {seed}", file=sys.stderr)
        missing += 1
    for worker in workers:
        worker.terminate()
    return missing


def summary(results: Path) -> str:
    """Means of `studies.csv`, a row a configuration, as Markdown."""
    table = pd.read_csv(results / "studies.csv")
    lines = [
        "| study | configuration | seeds | test NDCG@10 | HR@10 | valid NDCG@10 | best epoch | published | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (study, label), group in table.groupby(["study", "configuration"], sort=False):
        ndcg, target = group["test_ndcg_at_10"], group["published_ndcg_at_10"].iloc[0]
        spread = f" ± {ndcg.std():.4f}" if len(group) > 1 else ""
        published = "" if pd.isna(target) else f"{target:.4f} ({ndcg.mean() / target:.1%})"
        cells = [
            study, label, len(group), f"{ndcg.mean():.4f}{spread}", f"{group['test_hit_rate_at_10'].mean():.4f}",
            f"{group['valid_ndcg_at_10'].mean():.4f}", f"{group['best_epoch'].mean():.0f}", published,
            f"{group['peak_gib'].max():.3f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=["beauty", "bert4rec", "ladder", "nowplaying"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the canonical files")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--processes", type=int, default=3, help="worker processes a GPU")
    parser.add_argument("--seeds", type=int, default=3, choices=[1, 2, 3])
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds after which no job is started")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds that running jobs then have")
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    parser.add_argument("--summary", action="store_true", help="print the means of what has been run, and run nothing")
    options = parser.parse_args()
    if options.summary:
        print(summary(options.results))
        return 0
    chosen = [c for c in studies(options.data) if c.study in options.studies]
    return 1 if run(chosen, options) else 0


if __name__ == "__main__":
    sys.exit(main())
