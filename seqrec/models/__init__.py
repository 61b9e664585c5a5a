"""Encoders. `build` turns a model's configuration into one; its weights come from torch's global generator."""

from __future__ import annotations

from seqrec.config import Sasrec
from seqrec.models.base import SequenceModel
from seqrec.models.sasrec import SasrecModel

__all__ = ["SequenceModel", "build"]


def build(config: Sasrec, n_items: int) -> SequenceModel:
    """A freshly initialised model over a catalog of `n_items`; `torch.manual_seed` before it fixes every parameter."""
    return SasrecModel(config, n_items)
