"""What `benchmarks.studies` trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

STUDIES = ("beauty", "bert4rec", "ladder", "nowplaying")


@dataclass(frozen=True)
class Configuration:
    study: str
    label: str
    tree: dict[str, Any]
    target: float | None = None
    """Published test NDCG@10."""
    in_grid: bool = False
    """Of a grid whose best cell by validation alone gets more seeds."""


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
