"""ce and cce against torch's own cross-entropy on whole logits; what the published code gets wrong about pads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from seqrec.losses.ce import Cce, Ce


def dense(hidden: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(hidden @ items.T, targets)


def loss_and_gradients(function, problem) -> list[torch.Tensor]:
    hidden, items = problem.leaves
    value = function(hidden, items, problem.targets)
    return [value.detach(), *torch.autograd.grad(value, (hidden, items))]


ROW = 13 * 8
"""Bytes of one row of logits in the default problem."""


@pytest.mark.parametrize("chunk_bytes", [1, ROW, 2 * ROW + 5, 4 * ROW, 10 * ROW, 11 * ROW, 2**27])
def test_ce_is_torchs_cross_entropy_whatever_the_chunks(make_problem, chunk_bytes: int) -> None:
    problem = make_problem()
    torch.testing.assert_close(loss_and_gradients(Ce(chunk_bytes), problem), loss_and_gradients(dense, problem))


@pytest.mark.usefixtures("tile_bytes")
@pytest.mark.parametrize("block_items", [1, 4, 12, 13, 14, 4096])
def test_cce_is_torchs_cross_entropy_whatever_the_blocks(make_problem, block_items: int) -> None:
    problem = make_problem()
    torch.testing.assert_close(loss_and_gradients(Cce(block_items), problem), loss_and_gradients(dense, problem))


@pytest.mark.parametrize("loss", [Ce(3 * ROW), Cce(5)])
def test_a_confident_right_and_a_hopeless_answer_are_exact_in_float32(make_problem, loss) -> None:
    problem = make_problem(dtype=torch.float32).scaled(1e4)
    expected = F.cross_entropy((problem.hidden.double() @ problem.items.double().T), problem.targets)
    value = loss(problem.hidden, problem.items, problem.targets)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)


def test_a_chunk_never_holds_more_logits_than_asked_for(make_problem, monkeypatch) -> None:
    """The largest tensor that a step allocates is the chunk, or a gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    problem = make_problem(n=64, n_items=100, width=2)
    with Largest() as largest:
        loss_and_gradients(Ce(5 * 100 * 8), problem)
    assert largest.numel == 5 * 100
    with Largest() as largest:
        loss_and_gradients(dense, problem)
    assert largest.numel == 64 * 100, "the measuring itself must see whole logits where there are some"


def test_an_item_without_a_position_is_only_pushed_away(make_problem) -> None:
    """No pad is trained toward item 0: without a target there, item 0's gradient is that of a wrong answer alone."""
    problem = make_problem()
    targets = problem.targets.clamp(min=1)
    for loss in (Ce(), Cce()):
        hidden, items = problem.leaves
        loss(hidden, items, targets).backward()
        share = (problem.hidden @ problem.items.T).softmax(1)[:, 0]
        torch.testing.assert_close(items.grad[0], (share[:, None] * problem.hidden).mean(0))
