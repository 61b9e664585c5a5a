"""Trains one configuration over its seeds and records the mean: `python -m benchmarks.quality RUN.yaml`.

RUN.yaml is a configuration for `python -m seqrec.train`. Two files grow: `quality_runs_<loss>.csv`, a row a seed, and
`quality.csv`, a row of means and standard deviations. `--target` is a published NDCG@10 to stand beside the mean; the
exit code is 1 when the mean lies more than 5 % below it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from benchmarks import rows
from seqrec import config, yamlfile
from seqrec.data import load
from seqrec.reports import EpochReport
from seqrec.train import train

BAND = 0.95
"""A mean over three seeds of at least this share of the published value counts as reproduced."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1235, 37, 2451])
    parser.add_argument("--target", type=float, help="published test NDCG@10")
    parser.add_argument("--results", type=Path, default=rows.RESULTS)
    options = parser.parse_args()

    tree = yamlfile.load(options.run)
    base = config.parse(tree, str(options.run))
    split = load(base.data)
    reports = []
    for seed in options.seeds:
        run = base.model_copy(update={"train": base.train.model_copy(update={"seed": seed})})
        report = train(run, split=split, on_epoch=_tell)
        reports.append(report)
        metrics = {key: round(value, 6) for key, value in sorted(report.metrics.items())}
        name = f"quality_runs_{base.loss.name}"
        conditions = rows.conditions()
        rows.append(
            name,
            {"run": options.run.stem, "seed": seed, "epochs": report.epochs, **metrics, **conditions},
            options.results,
        )

    def over_seeds(key: str) -> tuple[float, float]:
        values = [report.metrics[key] for report in reports]
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    ndcg, ndcg_sd = over_seeds("test/ndcg_at_10")
    hit, hit_sd = over_seeds("test/hit_rate_at_10")
    row: dict[str, object] = {
        "run": options.run.stem,
        "loss": base.loss.name,
        "data": split.statistics.name,
        "digest": split.statistics.digest[:16],
        "split": base.data.split,
        "seeds": " ".join(map(str, options.seeds)),
        "ndcg_at_10_mean": round(ndcg, 5),
        "ndcg_at_10_sd": round(ndcg_sd, 5),
        "hit_rate_at_10_mean": round(hit, 5),
        "hit_rate_at_10_sd": round(hit_sd, 5),
        "valid_ndcg_at_10_mean": round(over_seeds("best/ndcg_at_10")[0], 5),
        "best_epoch_mean": round(over_seeds("best/epoch")[0], 1),
        "epoch_s_mean": round(over_seeds("time/epoch_s")[0], 4),
        "peak_gib_max": max(
            (r.metrics["memory/peak_gib"] for r in reports if "memory/peak_gib" in r.metrics), default=""
        ),
        "predicted_gib": round(reports[0].metrics["memory/predicted_gib"], 4),
        "published_ndcg_at_10": options.target or "",
        "ratio": round(ndcg / options.target, 4) if options.target else "",
        **rows.conditions(),
    }
    path = rows.append("quality", row, options.results)
    for key, value in row.items():
        print(f"{key:24} {value}")
    print(f"appended to {path}")
    return int(options.target is not None and ndcg < BAND * options.target)


def _tell(report: EpochReport) -> None:
    words = (
        f"{key} {value:.4f}"
        for key, value in report.metrics.items()
        if key in ("train/loss", "valid/ndcg_at_10", "time/epoch_s")
    )
    print(f"epoch {report.epoch}: {', '.join(words)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
