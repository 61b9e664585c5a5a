"""Quality of the losses and models on real data, many trainings at a time: `python -m benchmarks.studies beauty`.

beauty      SASRec with ce and sce in the published configurations, leave-one-out, beside the published NDCG@10
bert4rec    a small stated grid of BERT4Rec with ce on the same data; of its best cell by validation, the other seeds
ladder      on MovieLens-1M: bce with one negative, gbce, ce_minus, ce, cce (the order in which papers find them)
nowplaying  all losses on 60,416 items of #nowplaying

Beauty comes with the package; the others are canonical files in `--data`. Every job is one `seqrec.train.train`; worker
processes, several a GPU, take them in an order that gives every configuration its first seed before any has its second.
After `--deadline` seconds no job is started, and none that runs is waited for longer than `--grace`: what was not run
is said, not guessed. Rows go to `<results>/studies.csv`, one a run; runs that the file has already are not run again,
and `--summary` prints the means of that file. Times of jobs that share a GPU are times of a shared GPU, and `sharing`
says how many there were: `--times` runs a few epochs of every configuration, one at a time, into `studies_times.csv`.
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
from benchmarks.configurations import STUDIES, Configuration, studies

SEEDS = (1235, 37, 2451)
Key = tuple[str, str, int]
"""Study, configuration, seed."""


@dataclass(frozen=True)
class Job:
    configuration: Configuration
    seed: int
    fields: dict[str, Any] = field(default_factory=dict)
    """Of its section `train`, beside the configuration's own."""

    @property
    def key(self) -> Key:
        return self.configuration.study, self.configuration.label, self.seed


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
            tree = configuration.tree | {"train": configuration.tree["train"] | {"seed": seed} | job.fields}
            run = config.parse(tree)
            if run.data.path not in splits:
                splits[run.data.path] = data.load(run.data)
            split = splits[run.data.path]
            report = train(run, split=split, device=device)
        except Exception as error:
            results.put((configuration, seed, f"{type(error).__name__}: {error}"))
            if isinstance(error, torch.AcceleratorError):
                return  # nothing that this process asks of its GPU will be answered any more
            continue
        metrics = report.metrics
        row = {
            "study": configuration.study,
            "configuration": configuration.label,
            "kernels": run.train.kernels,
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
    name = "studies_times" if options.times else "studies"
    done = known(options.results / f"{name}.csv", options.kernels)
    seeds = SEEDS[:1] if options.times else SEEDS[: options.seeds]
    fields: dict[str, Any] = {"kernels": options.kernels}
    if options.times:
        fields |= {"epochs": options.times, "patience": None}
    jobs_left = [
        job
        for job in (Job(c, seed, fields) for seed in seeds for c in chosen if seed == SEEDS[0] or not c.in_grid)
        if job.key not in done
    ]
    waiting = [job for job in jobs_left if job.seed == SEEDS[0]]
    later = [job for job in jobs_left if job.seed != SEEDS[0]]
    running: set[Key] = set()
    cells: dict[tuple[str, str], float] = {key[:2]: valid for key, valid in done.items() if key[2] == SEEDS[0]}
    later += more_seeds(chosen, cells, seeds, done, fields)
    missing = 0
    while waiting or later or running:
        late = time.monotonic() - begun > options.deadline
        if not waiting and later:
            waiting, later = later, []
        alive = sum(worker.is_alive() for worker in workers)
        if not alive and results.empty():
            break
        while waiting and not late and len(running) < alive:
            job = waiting.pop(0)
            running.add(job.key)
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
        study, label = configuration.study, configuration.label
        rows.append(name, {**row, **rows.conditions()}, options.results)
        print(" ".join(f"{value}" for value in list(row.values())[:12]), flush=True)
        if seed == SEEDS[0] and configuration.in_grid:
            cells[study, label] = row["valid_ndcg_at_10"]
            later += more_seeds([c for c in chosen if c.study == study], cells, seeds, done, fields)
    for study, label, seed in running | {job.key for job in waiting + later}:
        print(f"not run to its end: {study}: {label}, seed {seed}", file=sys.stderr)
        missing += 1
    for worker in workers:
        worker.terminate()
    return missing


def known(path: Path, kernels: str) -> dict[Key, float]:
    """Validation NDCG@10 of the runs with these kernels that a file has."""
    if not path.exists():
        return {}
    table = pd.read_csv(path)
    table = table[table["kernels"] == kernels]
    keys = zip(table["study"], table["configuration"], table["seed"], strict=True)
    return dict(zip(keys, table["valid_ndcg_at_10"], strict=True))


def more_seeds(
    chosen: list[Configuration],
    cells: dict[tuple[str, str], float],
    seeds: tuple[int, ...],
    done: dict[Key, float],
    fields: dict[str, Any],
) -> list[Job]:
    """The other seeds of each grid's best cell by validation, once all of the grid have their first."""
    jobs = []
    for study in dict.fromkeys(c.study for c in chosen if c.in_grid):
        grid = [c for c in chosen if c.study == study and c.in_grid]
        if all((study, c.label) in cells for c in grid):
            winner = max(grid, key=lambda c: cells[c.study, c.label])
            jobs += [Job(winner, seed, fields) for seed in seeds[1:] if (study, winner.label, seed) not in done]
    return jobs


def summary(results: Path) -> str:
    """Means of `studies.csv`, a row a configuration, as Markdown; seconds an epoch of `studies_times.csv`."""
    table = pd.read_csv(results / "studies.csv")
    order = {key: number for number, key in enumerate((c.study, c.label) for c in studies(Path()))}
    times: dict[tuple[str, str, str], float] = {}
    if (results / "studies_times.csv").exists():
        alone = pd.read_csv(results / "studies_times.csv")
        times = {(row.study, row.configuration, row.kernels): row.epoch_s for row in alone.itertuples()}
    lines = [
        "| study | configuration | kernels | seeds | test NDCG@10 | HR@10 | valid NDCG@10 | best epoch | published "
        "| peak GiB | s/epoch |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = dict(list(table.groupby(["study", "configuration", "kernels"], sort=False)))
    for (study, label, kernels), group in sorted(groups.items(), key=lambda pair: order[pair[0][:2]]):
        ndcg, target = group["test_ndcg_at_10"], group["published_ndcg_at_10"].iloc[0]
        spread = f" ± {ndcg.std():.4f}" if len(group) > 1 else ""
        published = "" if pd.isna(target) else f"{target:.4f} ({ndcg.mean() / target:.1%})"
        epoch_s = times.get((study, label, kernels))
        cells = [
            study, label, kernels, len(group), f"{ndcg.mean():.4f}{spread}",
            f"{group['test_hit_rate_at_10'].mean():.4f}", f"{group['valid_ndcg_at_10'].mean():.4f}",
            f"{group['best_epoch'].mean():.0f}", published, f"{group['peak_gib'].max():.3f}",
            "" if epoch_s is None else f"{epoch_s:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", help=", ".join(STUDIES))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the canonical files")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="these configurations alone")
    parser.add_argument("--kernels", choices=["fused", "eager"], default="fused", help="train.kernels")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--processes", type=int, default=3, help="worker processes a GPU")
    parser.add_argument("--seeds", type=int, default=3, choices=[1, 2, 3])
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds after which no job is started")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds that running jobs then have")
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    parser.add_argument("--times", type=int, metavar="EPOCHS", help="run so few epochs of one seed, for their times")
    parser.add_argument("--summary", action="store_true", help="print the means of what has been run, and run nothing")
    options = parser.parse_args()
    if options.summary:
        print(summary(options.results))
        return 0
    unknown = sorted(set(options.studies) - set(STUDIES))
    if unknown or not options.studies:
        parser.error(f"studies: got {unknown or 'none'}; expected some of {', '.join(STUDIES)}.")
    chosen = [c for c in studies(options.data) if c.study in options.studies]
    if options.only:
        strange = sorted(set(options.only) - {c.label for c in chosen})
        if strange:
            parser.error(f"--only: got {strange}; expected some of {[c.label for c in chosen]}.")
        chosen = [c for c in chosen if c.label in options.only]
    return 1 if run(chosen, options) else 0


if __name__ == "__main__":
    sys.exit(main())
