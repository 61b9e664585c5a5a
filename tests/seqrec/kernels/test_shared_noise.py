"""What sharing candidates does to a gradient: the same expectation, and how much more noise.

By the eager losses: it is the draws' doing, not the kernels'.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.losses.ce_minus import CeMinus

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
