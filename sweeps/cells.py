"""The nouns of a sweep as plain data; no Ray, no torch.

cell = one resolved point (configuration and seed); configuration = a cell without its seed; trial = one execution of a
cell; replicates = cells that differ only in their seed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from seqrec.config import NUMERICS_VERSION, Run

Scalar = int | float | str | bool


@dataclass(frozen=True)
class Cell:
    """One resolved point of a search space."""

    cell_key: str
    configuration_key: str
    run: Run
    parameters: dict[str, Scalar]
    """What the space varies or derives, by dotted key, `loss.name` and `train.seed` always among them."""
    predicted_bytes: int
    """Closed-form peak of the train step."""

    @property
    def label(self) -> str:
        """A short name for people: `rece b256 n_buckets 583 s1235`."""
        rest = {k: v for k, v in self.parameters.items() if k not in ("loss.name", "train.batch_size", "train.seed")}
        words = [str(self.parameters["loss.name"]), f"b{self.run.train.batch_size}"]
        words += [f"{key.removesuffix('.name').rpartition('.')[2]} {value}" for key, value in rest.items()]
        return " ".join([*words, f"s{self.run.train.seed}"])


def keys(run: Run, digest: str) -> tuple[str, str]:
    """(cell_key, configuration_key) of a run on the data with this digest: 16 hex digits each."""
    identity: dict[str, Any] = {"run": run.identity(), "data": digest, "numerics": NUMERICS_VERSION}
    cell = _hash(identity)
    identity["run"]["train"].pop("seed")
    return cell, _hash(identity)


def _hash(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
