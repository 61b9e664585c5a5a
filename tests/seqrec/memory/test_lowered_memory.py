"""What an encoder of modules keeps in bf16, against what autograd saves of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from seqrec import config, models
from seqrec.data.batches import Batches, CausalBatches
from seqrec.data.cloze import ClozeBatches
from seqrec.data.tables import Sequences
from seqrec.memory import lowered
from seqrec.memory.tape import Tape

L, B, V, D = 32, 64, 500, 64


def full_batches(model: config.Model) -> Batches:
    """Of histories that all fill their window: one grid, on the CPU too."""
    items = L + (1 if isinstance(model, config.Sasrec) else 0)
    ids = np.random.default_rng(0).integers(0, V, B * items).astype(np.int32)
    sequences = Sequences(ids, np.arange(B + 1) * items, np.arange(B))
    settings: dict[str, Any] = {"max_length": L, "batch_size": B, "drop_last": True, "seed": 0, "device": "cpu"}
    if isinstance(model, config.Bert4rec):
        return ClozeBatches(sequences, mask_probability=0.15, **settings)
    return CausalBatches(sequences, **settings)


@pytest.mark.parametrize(
    "model",
    [
        {"name": "sasrec", "mask_padding": True},
        {"name": "bert4rec"},
        {"name": "bert4rec", "head": "tied", "n_blocks": 3},
    ],
    ids=["sasrec", "bert4rec", "tied"],
)
def test_activations_in_low_precision_are_what_autograd_saves(model: dict[str, Any]) -> None:
    # Without dropout: with it attention on the CPU would keep its matrix, and masks would be of float32.
    sizes = {"max_length": L, "hidden_size": D, "n_heads": 2, "dropout": 0.0}
    tree = {"data": {"path": "made up"}, "model": sizes | model, "loss": {"name": "ce"}}
    settings = config.parse(tree).model
    encoder = models.build(settings, V).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    saved: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Copies of weights in bf16 do not grow with the batch.
        if storage.data_ptr() not in parameters and storage.nbytes() >= B * L:
            saved[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    batch = next(iter(full_batches(settings).epoch(1)))
    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        hidden = encoder.states(batch.windows)
    saved[hidden.untyped_storage().data_ptr()] = hidden.nbytes
    # Grids on the CPU order histories by length; putting SASRec's states back keeps them twice.
    ordered = hidden.nbytes if isinstance(settings, config.Sasrec) else 0
    tape = Tape()
    lowered.forward(tape, lowered.Sizes(B * L, B, L, V, settings))
    assert tape.by["activations"] == pytest.approx(sum(saved.values()) - ordered, rel=0.03)
