"""The cells of `python -m benchmarks.oracle`: what the published grids span, over synthetic catalogs of three sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from seqrec import config
from seqrec.data.splits import leave_one_out
from seqrec.data.tables import Interactions, Split

CATALOGS: dict[str, tuple[int, int, float]] = {
    "12k": (12_101, 22_363, 2.0),
    "60k": (60_416, 40_000, 2.5),
    "173k": (173_511, 27_516, 4.1),
}
"""Name -> (items, users, mean of the logarithm of a history's length): about Beauty, nowplaying and Gowalla."""


Keys = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    catalog: str
    batch_size: int
    loss: dict[str, Any]
    model: dict[str, Any]
    train: dict[str, Any]

    @property
    def name(self) -> str:
        """One line that tells the cell from all others."""
        model = {"name": "sasrec", **self.model}
        words = [self.catalog, f"B={self.batch_size}"]
        for part in (self.loss, model):
            words += [str(part["name"]), *(f"{key}={value}" for key, value in part.items() if key != "name")]
        return " ".join([*words, *(f"{key}={value}" for key, value in self.train.items())])

    def run(self) -> config.Run:
        """Two epochs, each validated: what a run has from its second epoch on."""
        return config.parse(
            {
                "data": {"path": f"synthetic_{self.catalog}"},
                "model": {"name": "sasrec", **self.model},
                "loss": self.loss,
                "train": {"batch_size": self.batch_size, "epochs": 2, **self.train},
            }
        )


@cache
def split(catalog: str) -> Split:
    """Seeded: lengths lognormal with a spread of 0.8, 5 to 1,500; popularity rank^-0.8; every item occurs."""
    n_items, n_users, mean = CATALOGS[catalog]
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(mean, 0.8, n_users), 5, 1500).astype(np.int64)
    popularity = np.arange(1, n_items + 1) ** -0.8
    items = random.choice(n_items, size=lengths.sum(), p=popularity / popularity.sum())
    items[:n_items] = random.permutation(n_items)
    order = np.concatenate([np.arange(length) for length in lengths])
    users = np.repeat(np.arange(n_users), lengths)
    return leave_one_out(Interactions(users, items.astype(np.int64), order, False, f"synthetic_{catalog}", "0" * 64))


def cells() -> list[Cell]:
    """Every loss, batches of 8 to 1,024, lengths of 50 to 200, widths of 64 to 256, both models, all optimisers, both
    kinds of losses and of engines."""
    found: list[Cell] = []

    def add(
        catalog: str, batch_size: int, loss: dict[str, Any], model: dict[str, Any] | None = None, **train: Any
    ) -> None:
        found.append(Cell(catalog, batch_size, loss, model or {}, train))

    def sampled(name: str, n: int, **keys: Any) -> dict[str, Any]:
        return {"name": name, "n_negatives": n, **keys}

    def rece(n_buckets: int, extra: int, rounds: int) -> dict[str, Any]:
        return {"name": "rece", "n_buckets": n_buckets, "n_extra_chunks": extra, "rounds": rounds}

    def sce(size: int, size_y: int, mix_x: bool) -> dict[str, Any]:
        return {"name": "sce", "n_buckets": size, "bucket_size_x": size, "bucket_size_y": size_y, "mix_x": mix_x}

    ce: dict[str, Any] = {"name": "ce"}
    short = {"max_length": 50, "mask_padding": True}
    for batch_size in (8, 64, 256, 1024):
        for catalog in CATALOGS:
            add(catalog, batch_size, ce, short if catalog != "173k" else None)
    for batch_size, rounds, extra in ((8, 1, 0), (64, 128, 1), (256, 8, 3), (1024, 2, 1)):
        add("60k", batch_size, rece(250, extra, rounds), {"max_length": 100})
        add("173k", batch_size, rece(583, extra, rounds))
    for batch_size, size in ((8, 50), (128, 202), (1024, 620)):
        add("60k", batch_size, sce(size, 256, True), {"max_length": 100})
        add("173k", batch_size, sce(size, 512, False))
    for batch_size, n in ((8, 511), (128, 256), (512, 64), (1024, 1)):
        for name in ("bce", "bce_plus", "gbce", "ce_minus", "cce_minus"):
            add("60k" if n > 64 else "12k", batch_size, sampled(name, n), {"max_length": 100})
    for scope, n in (("position", 128), ("group", 511), ("batch", 4096)):
        add("173k", 128, sampled("ce_minus", n, negatives_scope=scope, exclude_history=False))
    for width in (128, 256):
        add("60k", 256, ce, {"hidden_size": width, "n_heads": 2, **short})
        add("60k", 128, rece(250, 1, 8), {"hidden_size": width, **short})
        add("60k", 128, sampled("gbce", 256), {"hidden_size": width, **short})
    for head in ("tied", "untied"):
        for name, batch_size in ((ce, 256), (sampled("cce_minus", 511), 64), (rece(110, 1, 1), 128)):
            add("12k", batch_size, name, {"name": "bert4rec", "head": head, "hidden_size": 128, "max_length": 100})
    for optimizer in ("rowwise_adam", "lazy_adam"):
        add("173k", 64, sampled("gbce", 64), optimizer=optimizer)
    for loss in (ce, {"name": "cce"}, sampled("bce", 64), sampled("gbce", 256), sampled("ce_minus", 256)):
        add("60k", 128, loss, {"max_length": 100}, kernels="eager")
    for loss in (rece(250, 1, 1), sce(202, 256, True)):
        add("60k", 128, loss, {"max_length": 100}, kernels="eager")
    add("60k", 128, ce, {"max_length": 100}, engine="eager")
    add("60k", 128, sampled("ce_minus", 256), short, engine="eager")
    return found
