"""ce_minus and cce_minus: limits, true rejection, unbiased corrections."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.losses.ce import Ce
from seqrec.losses.ce_minus import CceMinus, CeMinus

V = 13
CORRECTIONS = ("none", "log_count", "log_q")


def make(scope: str = "position", correction: str = "none", n: int = 4) -> CeMinus:
    return CeMinus(NegativesRequest(n, scope), V, correction)


def naive(problem, negatives: Negatives, correction: str) -> float:
    """Row by row, candidate by candidate."""
    logits = (problem.hidden @ problem.items.T).tolist()
    q = negatives.log_q.exp().tolist() if negatives.log_q is not None else [1 / V] * V
    losses = []
    for i, (row, y) in enumerate(zip(logits, problem.targets.tolist(), strict=True)):
        ids = negatives.ids[i if negatives.group is None else int(negatives.group[i])].tolist()
        kept = [item for item in ids if item != y]
        partition = math.exp(row[y])
        for item in kept:
            weight = {
                "none": 1.0,
                "log_count": (V - 1) / len(kept),
                "log_q": (1 - q[y]) / (len(kept) * q[item]),
            }[correction]
            partition += weight * math.exp(row[item])
        losses.append(math.log(partition) - row[y])
    return sum(losses) / len(losses)


def draw(scope: str, n_positions: int, n: int = 4, *, popular: bool = False) -> Negatives:
    generator = torch.Generator().manual_seed(7)
    rows = {"position": n_positions, "user": 4, "group": 3, "batch": 1}[scope]
    ids = torch.randint(V, (rows, n), generator=generator)
    # Groups of very different sizes, one of them empty.
    group = None if scope == "position" else (torch.randint(rows * 3, (n_positions,), generator=generator) // 4) % rows
    return Negatives(ids, group, torch.randn(V, generator=generator).log_softmax(0) if popular else None)


@pytest.mark.usefixtures("tile_bytes")
@pytest.mark.parametrize("popular", [False, True])
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("scope", ["position", "user", "group", "batch"])
def test_value_matches_the_written_out_sum(make_problem, scope: str, correction: str, popular: bool) -> None:
    problem = make_problem(n=23)
    negatives = draw(scope, 23, popular=popular)
    value = make(scope, correction)(problem.hidden, problem.items, problem.targets, negatives)
    assert value.item() == pytest.approx(naive(problem, negatives, correction), rel=1e-6)
    assert any((negatives.ids == y).any() for y in problem.targets), "no rejection took place: choose another seed"


@pytest.mark.usefixtures("tile_bytes")
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("scope", ["position", "batch"])
def test_all_items_as_negatives_are_full_cross_entropy(make_problem, scope: str, correction: str) -> None:
    problem = make_problem()
    rows = 11 if scope == "position" else 1
    everything = torch.arange(V).expand(rows, V)
    negatives = Negatives(everything, None if scope == "position" else torch.zeros(11, dtype=torch.int64))
    results = []
    for loss, given in ((make(scope, correction, V), negatives), (Ce(), None)):
        hidden, items = problem.leaves
        value = loss(hidden, items, problem.targets, given)
        results.append([value.detach(), *torch.autograd.grad(value, (hidden, items))])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_position_with_only_rejected_negatives_has_loss_zero_and_no_gradient(make_problem, correction: str) -> None:
    problem = make_problem(n=2)
    ids = torch.stack([problem.targets[:1].expand(4), (problem.targets[1] + 1).remainder(V).expand(4)])
    hidden, items = problem.leaves
    value = make("position", correction)(hidden, items, problem.targets, Negatives(ids))
    alone = make("position", correction)(problem.hidden[:1], problem.items, problem.targets[:1], Negatives(ids[:1]))
    assert alone.item() == 0
    value.backward()
    assert value.item() > 0
    assert not hidden.grad[0].any()
    assert hidden.grad[1].any()


def test_a_rejected_negative_is_absent_and_not_a_zero_score(make_problem) -> None:
    """Published kernels let it count as exp(0 + log((V - 1) / (n + 1))), and correct by n + 1."""
    problem = make_problem(n=1)
    y = int(problem.targets[0])
    other = (y + 1) % V
    loss = make("position", "log_count", n=2)
    value = loss(problem.hidden, problem.items, problem.targets, Negatives(torch.tensor([[y, other]])))
    logits = (problem.hidden @ problem.items.T)[0]
    expected = torch.logaddexp(logits[y], logits[other] + math.log(V - 1)) - logits[y]
    torch.testing.assert_close(value, expected)


def test_log_q_of_a_uniform_distribution_is_log_count(make_problem) -> None:
    problem = make_problem()
    drawn = draw("position", 11)
    uniform = Negatives(drawn.ids, None, torch.full((V,), -math.log(V), dtype=torch.float64))
    arguments = problem.hidden, problem.items, problem.targets
    by_count = make("position", "log_count")(*arguments, drawn)
    torch.testing.assert_close(make("position", "log_q")(*arguments, uniform), by_count)
    torch.testing.assert_close(make("position", "log_q")(*arguments, drawn), by_count)


def test_log_q_makes_the_partition_unbiased_and_log_count_does_not(make_problem) -> None:
    """Over all draws of n = 2 from a skewed q, given that some negative is kept: E[partition] is the full one."""
    n_items, n = 4, 2
    problem = make_problem(n=1, n_items=n_items, width=2)
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    logits = (problem.hidden @ problem.items.T)[0]
    y = int(problem.targets[0])
    expected = {"log_q": 0.0, "log_count": 0.0}
    mass = 0.0
    for ids in product(range(n_items), repeat=n):
        if all(item == y for item in ids):
            continue
        probability = math.prod(float(q[item]) for item in ids)
        mass += probability
        for correction in expected:
            loss = CeMinus(NegativesRequest(n, "position", "popularity"), n_items, correction)
            value = loss(problem.hidden, problem.items, problem.targets, Negatives(torch.tensor([ids]), None, q.log()))
            expected[correction] += probability * math.exp(float(value + logits[y]))
    full = float(logits.exp().sum())
    assert expected["log_q"] / mass == pytest.approx(full, rel=1e-9)
    assert abs(expected["log_count"] / mass - full) > 0.01 * full


def test_cce_minus_is_ce_minus_per_position_with_log_count(make_problem) -> None:
    problem = make_problem()
    negatives = draw("position", 11)
    arguments = problem.hidden, problem.items, problem.targets, negatives
    assert CceMinus(4, V)(*arguments) == make("position", "log_count")(*arguments)
    assert CceMinus(4, V).request == NegativesRequest(4, "position", "uniform", True, False)
    assert CceMinus(4, V, "popularity", "log_q").request == NegativesRequest(4, "position", "popularity", True, False)


@pytest.mark.parametrize("scope", ["position", "user", "batch"])
def test_no_tensor_has_a_width_for_every_position_and_negative(make_problem, monkeypatch, scope: str) -> None:
    """Beside the ids: neither (N, n) nor, as in the published code, (N, n, D)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    n, positions, width = 16, 64, 8
    problem = make_problem(n=positions, n_items=V, width=width)
    monkeypatch.setattr("seqrec.losses.candidates.TILE_BYTES", 8 * 600)
    hidden, items = problem.leaves
    negatives = draw(scope, positions, n)
    with Largest() as largest:
        make(scope, n=n)(hidden, items, problem.targets, negatives).backward()
    assert largest.numel <= 600 < positions * n
    assert positions * width < 600, "the states themselves must stay below the bound"
