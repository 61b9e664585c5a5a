"""The eager losses beside shared candidates: the twin is one of them; and what sharing does to their gradients.

They keep their expectation, with a little more noise: the draws' doing, not the kernels'.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.kernels.twins import shared as twin
from seqrec.losses import Loss
from seqrec.losses.bce import BcePlus, Gbce
from seqrec.losses.ce_minus import CeMinus


@pytest.mark.parametrize("grouping", ["interleaved", "ragged"])
def test_twin_is_the_loss(grouping: str) -> None:
    """The eager losses, which walk over tiles by another code, say the same of the same draws."""
    generator = torch.Generator().manual_seed(0)
    three = (
        torch.randn(90, 16, generator=generator, dtype=torch.float64),
        torch.randn(41, 16, generator=generator, dtype=torch.float64),
        torch.randint(41, (90,), generator=generator),
    )
    ids = torch.randint(41, (4, 30), generator=generator)
    log_q = torch.randn(41, generator=generator).log_softmax(0)
    offsets = torch.tensor([0, 5, 5, 60, 90])
    group = torch.arange(90) % 4
    if grouping == "ragged":
        group = torch.repeat_interleave(torch.arange(4), offsets.diff())
    given: dict[str, Any] = {"ids": ids, "offsets": offsets if grouping == "ragged" else None}
    request = NegativesRequest(30, "group")
    gbce = Gbce(41, 30, 0.5)
    cases: list[tuple[Loss, tuple[Any, ...]]] = [
        (CeMinus(request, 41, correction), twin.shared_softmax(*three, **given, correction=correction, log_q=log_q))
        for correction in ("none", "log_count", "log_q")
    ]
    cases += [
        (gbce, twin.shared_binary(*three, **given, beta=gbce.beta)),
        (BcePlus(request), twin.shared_binary(*three, **given, plus=True, mean=False)),
    ]
    for loss, found in cases:
        wanted = loss.value_and_gradients(*three, Negatives(ids, group, log_q))
        torch.testing.assert_close(found, wanted)


USERS, LENGTH, ITEMS, WIDTH = 128, 8, 2000, 64
"""A batch as in training: more users than a group has positions, each user's states alike."""


@pytest.fixture(scope="module")
def model() -> dict[str, Tensor]:
    """Targets drawn from the model's own softmax, as after training; and the exact gradient of the items."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(ITEMS, WIDTH, generator=generator)
    states = torch.randn(USERS, 1, WIDTH, generator=generator)
    states = (states + 0.5 * torch.randn(USERS, LENGTH, WIDTH, generator=generator)).view(-1, WIDTH)
    shares = {}
    for name, sd in (("peaked", 2.8), ("flat", 1.0)):
        hidden = states * (sd / states.norm(dim=1).mean())
        p = (hidden @ items.T).softmax(1)
        targets = torch.multinomial(p, 1, generator=generator)
        to_logits = p.scatter_add(1, targets, torch.full(targets.shape, -1.0)) / len(hidden)
        shares |= {name: hidden, f"{name}_targets": targets[:, 0], f"{name}_exact": to_logits.T @ hidden}
    return {"items": items, **shares}


def gradients_of(model: dict[str, Tensor], kind: str, scheme: str, K: int, n_draws: int) -> Tensor:
    """(draws, V, D) of the items, over the norm of the exact one; log_count."""
    hidden, targets, exact = model[kind], model[f"{kind}_targets"], model[f"{kind}_exact"]
    N, generator = len(hidden), torch.Generator().manual_seed(1)
    place, G = torch.arange(N), N // 128
    group = {"position": place, "interleaved": place % G, "consecutive": place // 128}[scheme]
    loss = CeMinus(NegativesRequest(K, "group"), ITEMS, "log_count")
    found = []
    for _ in range(n_draws):
        ids = torch.randint(ITEMS, (N if scheme == "position" else G, K), generator=generator)
        negatives = Negatives(ids, None if scheme == "position" else group, None, 128)
        found.append(loss.value_and_gradients(hidden, model["items"], targets, negatives)[2])
    return torch.stack(found) / exact.norm()


def noise(draws: Tensor) -> float:
    """Root of the mean squared distance of a draw from what draws are on average."""
    return float((draws - draws.mean(0)).square().sum() / (len(draws) - 1)) ** 0.5


def test_sharing_keeps_the_expectation(model: dict[str, Tensor]) -> None:
    """The mean of many draws is the gradient of the full softmax, as far as the number of draws lets tell, shared or
    not. (Of few candidates it is not quite: the logarithm of an unbiased sum is biased.)"""
    exact = model["flat_exact"] / model["flat_exact"].norm()
    for scheme in ("position", "interleaved"):
        draws = gradients_of(model, "flat", scheme, 255, 8)
        error = float((draws.mean(0) - exact).norm())
        assert error <= 1.15 * noise(draws) / len(draws) ** 0.5
        assert float((draws.mean(0) * exact).sum() / draws.mean(0).norm()) > 0.99


def test_sharing_by_interleaving_adds_little_noise(model: dict[str, Tensor]) -> None:
    """At most 1.3 times that of candidates per position; groups of neighbours, mostly of one user, add far more."""
    alone, interleaved, consecutive = (
        noise(gradients_of(model, "peaked", scheme, 127, 6)) for scheme in ("position", "interleaved", "consecutive")
    )
    assert interleaved <= 1.3 * alone
    assert consecutive >= 1.5 * alone
