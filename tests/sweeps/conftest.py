"""A made-up sweep as a ledger: what a real one of five losses looks like, every outcome in it, no training needed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

T0 = 1_700_000_000_000
SEEDS = (1235, 37, 2)
CUTOFFS = (1, 5, 10, 20, 50)

LOSSES: dict[str, list[dict[str, Any]]] = {
    "ce": [{"train.batch_size": b} for b in (32, 64, 128)],
    "bce": [{"loss.n_negatives": n} for n in (1, 16, 256)],
    "gbce": [{"loss.n_negatives": 256, "loss.gbce_t": t} for t in (0.25, 0.5, 0.75)],
    "sce": [{"loss.n_buckets": n, "loss.bucket_size_y": y} for n, y in ((50, 64), (100, 256), (202, 1024))],
    "rece": [{"loss.n_buckets": n, "loss.n_extra_chunks": e} for n, e in ((87, 0), (350, 1), (583, 3))],
}
QUALITY = {"ce": 0.0700, "bce": 0.0420, "gbce": 0.0600, "sce": 0.0660, "rece": 0.0690}
GIB = {"ce": 4.0, "bce": 0.12, "gbce": 1.5, "sce": 0.6, "rece": 0.9}


@dataclass
class MadeSweep:
    """A ledger under construction; every event one line, as docs/architecture.md has it."""

    directory: Path
    name: str = "losses"
    sweep_id: str = "5weep1d000000000000000000000000a"
    time_ms: int = T0
    sequence: int = 0
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger.jsonl"

    def add(self, type: str, *, wait_ms: int = 500, **fields: Any) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        event = {"type": type, "sequence": self.sequence, "time_ms": self.time_ms, **fields}
        with self.ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        self.sequence, self.time_ms = self.sequence + 1, self.time_ms + wait_ms

    def open(self, cell_keys: list[str], launch: int = 1, **plan: Any) -> None:
        if launch == 1:
            self.add("sweep", sweep_id=self.sweep_id, name=self.name)
        fields: dict[str, Any] = {
            "spec": "sweep: losses\nfixed:\n  data.path: amazon_beauty_5core\n",
            "overrides": ["train.epochs=4"],
            "description": "five losses",
            "duplicates": 2,
            "dropped": 3,
            "scheduler": {"name": "asha", "eta": 3},
            "objectives": {"quality": "valid/ndcg_at_10", "memory": "memory/peak_gib"},
            "data": {
                "path": "amazon_beauty_5core",
                "name": "amazon_beauty_5core",
                "digest": "d1" * 32,
                "n_users": 22363,
                "n_items": 12101,
                "n_interactions": 198502,
            },
            "environment": {
                "git_commit": "0123456789abcdef",
                "python": "3.11.7",
                "torch": "2.13.0",
                "ray": "2.60.0",
                "mlflow": "3.17.2",
                "host": "here",
                "cpu": "2 x Some CPU",
                "os": "Linux",
            },
        }
        self.add("plan", launch=launch, cell_keys=cell_keys, **(fields | plan))

    def cell(self, cell_key: str, loss: str, parameters: dict[str, Any], seed: int, gib: float, name: str = "") -> None:
        batch = parameters.get("train.batch_size", 128)
        rest = " ".join(f"{k.rpartition('.')[2]} {v}" for k, v in parameters.items() if k != "train.batch_size")
        label = name or " ".join(filter(None, [loss, f"b{batch}", rest, f"s{seed}"]))
        loss_part = {key.removeprefix("loss."): value for key, value in parameters.items() if key.startswith("loss.")}
        self.cells[cell_key] = {
            "cell_key": cell_key,
            "configuration_key": f"conf-{loss}-{json.dumps(parameters, sort_keys=True)}",
            "label": label,
            "parameters": {"loss.name": loss, **parameters, "train.seed": seed},
            "run": {
                "data": {"path": "amazon_beauty_5core", "split": "leave_one_out"},
                "model": {"name": "sasrec", "max_length": 50, "hidden_size": 64},
                "loss": {"name": loss, **loss_part},
                "train": {"seed": seed, "batch_size": batch, "epochs": 4, "patience": None},
            },
            "predicted_bytes": int(gib * 2**30),
        }
        self.add("cell", wait_ms=1, **self.cells[cell_key])

    def train(
        self,
        cell_key: str,
        quality: float,
        *,
        epochs: int = 4,
        outcome: str = "done",
        reason: str = "",
        attempt: int = 1,
        first: int = 1,
        peak_gib: float | None = None,
        gpu_share: float | None = None,
        epoch_s: float = 0.41,
    ) -> None:
        """start, epochs, and the end, unless outcome is empty. gpu_share: None as in older ledgers."""
        share = {} if gpu_share is None else {"gpu_share": gpu_share}
        self.add("start", cell_key=cell_key, attempt=attempt, node="here", pid=1, from_epoch=first - 1, **share)
        best = 0.0
        memory = {} if peak_gib is None else {"memory/peak_gib": peak_gib, "memory/reserved_gib": 1.1 * peak_gib}
        for epoch in range(first, epochs + 1):
            value = quality * (1 - 0.5**epoch)
            best = max(best, value)
            metrics = {"train/loss": 9.0 / epoch, "time/epoch_s": epoch_s, "time/elapsed_s": 0.5 * epoch}
            metrics |= {f"valid/ndcg_at_{k}": value * (0.4 + k / 16.666) for k in CUTOFFS if k != 10}
            metrics["valid/ndcg_at_10"] = value
            self.add("epoch", cell_key=cell_key, attempt=attempt, epoch=epoch, metrics=metrics | memory)
        if outcome:
            summary: dict[str, float] = {"memory/predicted_gib": self.cells[cell_key]["predicted_bytes"] / 2**30}
            if outcome == "done":
                summary |= {"best/ndcg_at_10": best, "best/epoch": float(epochs), "time/elapsed_s": 0.5 * epochs}
                summary |= {"time/epoch_s": epoch_s}
                summary |= {"test/ndcg_at_10": 0.8 * best, "test/hit_rate_at_10": 1.5 * best} | memory
            fields: dict[str, Any] = {"outcome": outcome, "reason": reason, "epochs": epochs, "metrics": summary}
            self.add("end", cell_key=cell_key, attempt=attempt, **fields)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., MadeSweep]:
    """Makes an empty ledger; `name` names the directory too."""

    def make(name: str = "losses", **fields: Any) -> MadeSweep:
        return MadeSweep(tmp_path / "runs" / name, name=name, **fields)

    return make


@pytest.fixture
def full(made: Callable[..., MadeSweep]) -> Callable[..., MadeSweep]:
    """Makes five losses x three configurations x three seeds, every outcome among them."""

    def make(*, measured: bool = True, close: bool = True, **fields: Any) -> MadeSweep:
        sweep = made(**fields)
        noise = random.Random(7)
        plan = [
            (f"{loss}-{number}-{seed}", loss, parameters, seed, GIB[loss] * 2 ** (number - 1))
            for loss, group in LOSSES.items()
            for number, parameters in enumerate(group)
            for seed in SEEDS
        ]
        sweep.open([key for key, *_ in plan])
        odd: dict[str, tuple[str, str]] = {
            "gbce-0-2": ("diverged", "the loss became non-finite in epoch 2"),
            "gbce-2-1235": ("oom", "CUDA out of memory. Tried to allocate 2.00 GiB"),
            "ce-2-2": ("predicted_oom", "its predicted peak does not fit the smallest GPU"),
            "sce-2-37": ("error", "ValueError: <b>sharp</b> & blunt"),
            "bce-0-2": ("stopped", "asha: rung 1"),
            "bce-0-37": ("stopped", "asha: rung 1"),
            "bce-0-1235": ("stopped", "asha: rung 1"),
            "rece-2-2": ("interrupted", "the launch ended first"),
        }
        for key, loss, parameters, seed, gib in plan:
            outcome, reason = odd.get(key, ("done", ""))
            number = int(key.split("-")[1])
            if key == "rece-2-37":
                continue  # never started
            sweep.cell(key, loss, parameters, seed, gib)
            if outcome == "predicted_oom":
                end: dict[str, Any] = {"outcome": outcome, "reason": reason, "epochs": 0, "metrics": {}}
                sweep.add("end", cell_key=key, attempt=1, **end)
                continue
            quality = QUALITY[loss] * (0.9 + 0.05 * number) * (1 + noise.gauss(0, 0.01))
            epochs = 4 if outcome == "done" else 2
            peak = gib * 1.02 if measured else None
            sweep.train(key, quality, epochs=epochs, outcome=outcome, reason=reason, peak_gib=peak)
        if close:
            sweep.add("close", launch=1, reason="interrupted", remaining=2)
        return sweep

    return make
