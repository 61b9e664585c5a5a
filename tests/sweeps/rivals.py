"""Cells for rules to judge, and the rule with wide open doors."""

from __future__ import annotations

from typing import Any

from seqrec.config import Run
from sweeps import cells
from sweeps.cells import Cell
from sweeps.pareto_asha import ParetoAsha, Settings

MIB = 2**20


def cell(number: int, memory: int = 100, seed: int = 1, epochs: int = 27, loss: str = "ce", batch: int = 64) -> Cell:
    """Cells of different numbers are different configurations, and kin unless their memory says otherwise."""
    tree: dict[str, Any] = {
        "data": {"path": "x"},
        "model": {"name": "sasrec"},
        "loss": {"name": loss},
        "train": {"batch_size": batch, "learning_rate": number * 1e-4, "seed": seed, "epochs": epochs},
    }
    run = Run.model_validate(tree)
    parameters: dict[str, Any] = {"train.learning_rate": number * 1e-4, "train.seed": seed}
    return Cell(*cells.keys(run, "0" * 64), run, parameters, memory * MIB)


def rule(some: list[Cell], **changes: Any) -> ParetoAsha:
    return ParetoAsha(Settings(**{"keep": 1.0, "margin": 0.1, "last_margin": 0.1, **changes}), some)
