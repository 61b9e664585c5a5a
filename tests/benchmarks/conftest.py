"""Eager losses with the signatures of the fused ones: they stand for kernels where the benchmark is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import loss_cases, loss_checks, loss_clock
from benchmarks.loss_cases import NotBuiltError
from benchmarks.loss_clock import Result
from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.losses.base import Loss
from seqrec.losses.bce import BcePlus, Gbce
from seqrec.losses.ce import Ce
from seqrec.losses.ce_minus import CeMinus
from seqrec.losses.rece import Rece
from seqrec.losses.sce import Sce

Fakes = dict[tuple[str, str], Callable[..., Any]]
"""(module, name) -> function."""


def _cross_entropy(x: Tensor, w: Tensor, y: Tensor, weights: Tensor | None = None, **_: Any) -> Result:
    return Ce().value_and_gradients(x, w, y, weights_N=weights)


def _draws(x: Tensor, w: Tensor, given: dict[str, Any]) -> Tensor:
    if given.get("ids") is not None:
        ids: Tensor = given["ids"].long()
        return ids
    generator = torch.Generator().manual_seed(int(given["seed"]))
    return torch.randint(len(w), (len(x), given["n_negatives"]), generator=generator)


def _sampled_softmax(x: Tensor, w: Tensor, y: Tensor, weights: Tensor | None = None, **given: Any) -> Result:
    ids = _draws(x, w, given)
    loss = CeMinus(NegativesRequest(ids.shape[1], "position"), len(w), given["correction"])
    return loss.value_and_gradients(x, w, y, Negatives(ids, None, given.get("log_q")), weights_N=weights)


def _shared_softmax(x: Tensor, w: Tensor, y: Tensor, weights: Tensor | None = None, **given: Any) -> Result:
    ids, offsets, places = given["ids"].long(), given.get("offsets"), torch.arange(len(x))
    group = places % len(ids) if offsets is None else loss_cases.user_of_position(offsets, len(x))
    loss = CeMinus(NegativesRequest(ids.shape[1], "position"), len(w), given["correction"])
    return loss.value_and_gradients(x, w, y, Negatives(ids, group, given.get("log_q")), weights_N=weights)


class _Beta(Gbce):
    def __init__(self, n_items: int, n_negatives: int, beta: float) -> None:
        super().__init__(n_items, n_negatives, 0.0)
        self.beta = beta


def _sampled_binary(x: Tensor, w: Tensor, y: Tensor, weights: Tensor | None = None, **given: Any) -> Result:
    ids = _draws(x, w, given)
    loss: Loss = _Beta(len(w), ids.shape[1], given.get("beta", 1.0))
    if given.get("plus"):
        loss = BcePlus(NegativesRequest(ids.shape[1], "position"))
    return loss.value_and_gradients(x, w, y, Negatives(ids), weights_N=weights)


def _rece(x: Tensor, w: Tensor, y: Tensor, weights: Tensor | None = None, **given: Any) -> Result:
    loss = Rece(given["n_chunks"], given["reach"], len(given["projections"]))
    return loss.value_and_gradients(x, w, y, projections=given["projections"])


def _sce(x: Tensor, w: Tensor, y: Tensor, **given: Any) -> tuple[Tensor, ...]:
    loss = Sce(len(w), len(given["centres"]), given["bucket_size_x"], given["bucket_size_y"])
    result = loss.value_and_gradients(x, w, y, centres=given["centres"])
    assert loss.covered_share is not None
    return (*result, loss.covered_share)


FAKES: Fakes = {
    ("cross_entropy", "cross_entropy"): _cross_entropy,
    ("sampled", "sampled_softmax"): _sampled_softmax,
    ("sampled", "sampled_binary"): _sampled_binary,
    ("shared", "shared_softmax"): _shared_softmax,
    ("rece", "rece"): _rece,
    ("sce", "sce"): _sce,
    # Uniform draws, whoever is popular.
    ("draws", "alias_table"): lambda counts: counts,
    ("draws", "drawn"): lambda seed, n, k, v, _: torch.randint(v, (n, k)),
}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """What stands for the kernels; a test may take some out or put wrong ones in."""
    made = dict(FAKES)

    def kernel(module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in made:
            raise NotBuiltError(f"{module}.{name}")
        return made[module, name]

    monkeypatch.setattr(loss_cases, "kernel", kernel)
    monkeypatch.setattr(loss_checks, "kernel", kernel)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loss_clock, "SECONDS", 0.0)
    monkeypatch.setattr(loss_clock, "LEAST_CALLS", 2)
    return made
