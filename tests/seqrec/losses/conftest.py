"""Small random problems, and every loss in a form that can be called without a sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.losses.base import Loss
from seqrec.losses.bce import Bce, BcePlus, Gbce
from seqrec.losses.ce import Cce, Ce
from seqrec.losses.ce_minus import CceMinus, CeMinus
from seqrec.losses.rece import Rece
from seqrec.losses.sce import Sce


@dataclass(frozen=True, eq=False)
class Problem:
    hidden: Tensor
    items: Tensor
    targets: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.detach().clone().requires_grad_(), self.items.detach().clone().requires_grad_()

    def scaled(self, factor: float) -> Problem:
        return replace(self, hidden=self.hidden * factor)


def make_problem(
    n: int = 11, n_items: int = 13, width: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    return Problem(
        torch.randn(n, width, generator=generator, dtype=dtype),
        torch.randn(n_items, width, generator=generator, dtype=dtype),
        torch.randint(n_items, (n,), generator=generator),
    )


@pytest.fixture(name="make_problem")
def _make_problem() -> Callable[..., Problem]:
    return make_problem


K = 6


def _request(scope: str) -> NegativesRequest:
    return NegativesRequest(K, scope)


LOSSES: dict[str, Callable[[int], Loss]] = {
    "ce": lambda V: Ce(chunk_bytes=3 * V * 8),
    "cce": lambda V: Cce(block_items=5),
    "bce": lambda V: Bce(V, K),
    "bce_plus": lambda V: BcePlus(_request("position")),
    "gbce": lambda V: Gbce(V, K, 0.75),
    "ce_minus user": lambda V: CeMinus(_request("user"), V),
    "ce_minus position log_count": lambda V: CeMinus(_request("position"), V, "log_count"),
    "ce_minus group log_q": lambda V: CeMinus(_request("group"), V, "log_q"),
    "ce_minus batch": lambda V: CeMinus(_request("batch"), V, "log_count"),
    "cce_minus": lambda V: CceMinus(K, V),
    "sce": lambda V: Sce(V, n_buckets=3, bucket_size_x=6, bucket_size_y=min(4, V)),
    "sce mixed": lambda V: Sce(V, n_buckets=3, bucket_size_x=6, bucket_size_y=min(4, V), mix_x=True),
    "rece": lambda V: Rece(n_buckets=4, n_extra_chunks=1, rounds=3),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A loss with fixed negatives and randomness: a function of states and items alone."""

    name: str

    def loss(self, n_items: int) -> Loss:
        return LOSSES[self.name](n_items)

    def negatives(self, loss: Loss, n: int, n_items: int, seed: int = 1) -> Negatives | None:
        if loss.request is None:
            return None
        generator = torch.Generator().manual_seed(seed)
        scope = loss.request.scope
        rows = {"position": n, "user": 3, "group": 4, "batch": 1}[scope]
        ids = torch.randint(n_items, (rows, loss.request.n), generator=generator)
        group = None if scope == "position" else torch.randint(rows, (n,), generator=generator)
        log_q = torch.randn(n_items, generator=generator).log_softmax(0) if scope == "group" else None
        return Negatives(ids, group, log_q)

    def __call__(
        self,
        hidden: Tensor,
        items: Tensor,
        targets: Tensor,
        negatives: Negatives | None = None,
        weights_N: Tensor | None = None,
    ) -> Tensor:
        loss = self.loss(len(items))
        return loss(hidden, items, targets, *self._rest(loss, hidden, items, negatives), weights_N)

    def value_and_gradients(
        self,
        hidden: Tensor,
        items: Tensor,
        targets: Tensor,
        negatives: Negatives | None = None,
        weights_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.loss(len(items))
        return loss.value_and_gradients(hidden, items, targets, *self._rest(loss, hidden, items, negatives), weights_N)

    def _rest(
        self, loss: Loss, hidden: Tensor, items: Tensor, negatives: Negatives | None
    ) -> tuple[Negatives | None, torch.Generator]:
        if negatives is None:
            negatives = self.negatives(loss, len(hidden), len(items))
        return negatives, torch.Generator().manual_seed(2)


@pytest.fixture(params=list(LOSSES))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


# A mixture of states, and the ranks of states within a bucket, depend on the order in which states come.
@pytest.fixture(params=[name for name in LOSSES if name not in ("sce mixed", "rece")])
def orderless_case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


TILED = ("candidates", "ce", "rece", "sce")


@pytest.fixture(params=[None, 600], ids=["one tile", "many tiles"])
def tile_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Runs a test twice: all in one tile, and with every tile down to a few rows."""
    if request.param is not None:
        for module in TILED:
            monkeypatch.setattr(f"seqrec.losses.{module}.TILE_BYTES", request.param)
    return request.param
