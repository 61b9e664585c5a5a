"""Encoders. `build` turns a model's configuration into one; its weights come from torch's global generator."""

from __future__ import annotations

from seqrec.config import Bert4rec, Model
from seqrec.models.base import SequenceModel
from seqrec.models.bert4rec import Bert4recModel
from seqrec.models.sasrec import SasrecModel

__all__ = ["SequenceModel", "build"]


def build(config: Model, n_items: int) -> SequenceModel:
    """A freshly initialised model over a catalog of `n_items`; `torch.manual_seed` before it fixes every parameter."""
    return Bert4recModel(config, n_items) if isinstance(config, Bert4rec) else SasrecModel(config, n_items)
