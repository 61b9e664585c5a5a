"""States, items and targets that losses are timed on: two distributions, and how they change between two calls.

random  states and items Gaussian, logits of standard deviation 0.4, targets uniform, users of equal length: every
        softmax is flat, which flatters whoever skips small gradients, and spreads atomic additions over all rows
peaked  as in a trained model: x_i = scale (a w_y + b u + noise), u the direction of the position's user, logits of
        standard deviation 6, the target's about 4.4 of them above the mean; targets by popularity rank^-0.8, so that a
        few rows get a large share of the gradient; users of lengths lognormal(4.1, 0.8) clipped to 1..200, end to end
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

INPUTS = ("random", "peaked")
RANDOM_SD, PEAKED_SD = 0.4, 6.0
LONGEST = 200


@dataclass(frozen=True)
class Shape:
    name: str
    n_positions: int
    n_items: int
    width: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("S0", 25_600, 173_511, 64),
        Shape("S1", 25_600, 1_000_001, 64),
        Shape("S2", 131_072, 1_000_001, 64),
        Shape("S3", 25_600, 1_000_001, 256),
        Shape("S4", 25_600, 1_000_001, 128),
        Shape("S5", 600, 173_511, 64),  # a batch of 8 histories
    )
}
QUICK = Shape("quick", 24, 200, 16)


@dataclass(eq=False)
class Problem:
    """What a loss is given. All tensors keep their addresses when `stir` changes them: a captured step reads the new
    values."""

    shape: Shape
    hidden: Tensor
    """(N, D) float32."""
    items: Tensor
    """(V, D) float32."""
    targets: Tensor
    """(N,) int64."""
    offsets: Tensor
    """(users + 1,) int64: positions of one user lie end to end."""
    longest: int
    """No user has more positions."""
    seed: Tensor
    """(1,) int64: of the losses that draw inside their kernel."""
    _stirred: int = field(default=0)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def stir(self) -> None:
        """Other values of the same distribution, in place: rows trade places, and coordinates their signs (in states
        and items alike, so that logits stay as peaked as they are)."""
        self._stirred += 1
        generator = torch.Generator().manual_seed(self._stirred)
        signs = (2.0 * torch.randint(2, (self.shape.width,), generator=generator) - 1).to(self.device)
        shift = 1 + int(torch.randint(max(1, len(self.hidden) - 1), (1,), generator=generator))
        self.items.mul_(signs)
        self.hidden.copy_(self.hidden.roll(shift, 0).mul_(signs))
        self.targets.copy_(self.targets.roll(shift))
        self.seed.add_(1)


def build(shape: Shape, inputs: str, device: torch.device, seed: int = 0) -> Problem:
    """A problem from its seed."""
    generator = torch.Generator(device).manual_seed(seed)
    N, V, D = shape.n_positions, shape.n_items, shape.width

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    if inputs == "random":
        scale = (RANDOM_SD / D**0.5) ** 0.5
        hidden, items = normal(N, D).mul_(scale), normal(V, D).mul_(scale)
        targets = torch.randint(V, (N,), generator=generator, device=device)
        offsets = torch.arange(0, N + LONGEST, LONGEST, device=device).clamp_(max=N)
    else:
        offsets = _ragged(N, seed).to(device)
        items = normal(V, D).mul_(D**-0.5)
        targets = _popular(N, V, generator)
        users = torch.searchsorted(offsets, torch.arange(N, device=device), right=True) - 1
        directions = torch.nn.functional.normalize(normal(len(offsets) - 1, D))
        noise = torch.nn.functional.normalize(normal(N, D))
        # A unit state's logits have deviation |w| / sqrt(D) = 1 / sqrt(D), and its target's is a.
        a, b = min(0.9, 4.4 / D**0.5), 0.35
        hidden = a * torch.nn.functional.normalize(items[targets]) + b * directions[users]
        hidden.add_(noise, alpha=max(0.1, 1 - a**2 - b**2) ** 0.5).mul_(PEAKED_SD * D**0.5)
    seeds = torch.full((1,), 1 + seed, device=device)
    longest = int((offsets[1:] - offsets[:-1]).max())
    return Problem(shape, hidden, items, targets, offsets, longest, seeds)


def _ragged(n_positions: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randn(n_positions, generator=generator).mul_(0.8).add_(4.1).exp_().long().clamp_(1, LONGEST)
    ends = lengths.cumsum(0)
    n_users = int((ends < n_positions).sum()) + 1
    return torch.cat([torch.zeros(1, dtype=torch.int64), ends[:n_users].clamp(max=n_positions)])


def _popular(n_positions: int, n_items: int, generator: torch.Generator) -> Tensor:
    device = generator.device
    ranks = torch.arange(1, n_items + 1, device=device, dtype=torch.float64)
    cumulative = ranks.pow_(-0.8).cumsum_(0)
    tickets = torch.rand(n_positions, generator=generator, device=device, dtype=torch.float64) * cumulative[-1]
    ranked = torch.searchsorted(cumulative, tickets).clamp_(max=n_items - 1)
    return torch.randperm(n_items, generator=generator, device=device)[ranked]
