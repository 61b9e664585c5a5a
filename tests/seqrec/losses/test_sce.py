"""sce against a twin that fills every bucket in a loop and lets autograd take the maximum."""

from __future__ import annotations

import pytest
import torch

from seqrec.errors import InfeasibleError
from seqrec.losses.ce import Ce
from seqrec.losses.sce import Sce


def naive(hidden, items, targets, centres, size_x: int, size_y: int):
    """(loss, share of positions covered), the definition word by word."""
    found: dict[int, list[torch.Tensor]] = {}
    for centre in centres:
        positions = (hidden @ centre).argsort(descending=True)[:size_x].tolist()
        bucket = (items @ centre).argsort(descending=True)[:size_y].tolist()
        for i in positions:
            y = int(targets[i])
            candidates = [hidden[i] @ items[y]] + [hidden[i] @ items[j] for j in bucket if j != y]
            found.setdefault(i, []).append(torch.stack(candidates).logsumexp(0) - candidates[0])
    worst = [torch.stack(losses).max() for losses in found.values()]
    return torch.stack(worst).mean(), len(found) / len(hidden)


def run(function, problem) -> list[torch.Tensor]:
    hidden, items = problem.leaves
    value = function(hidden, items, problem.targets)
    return [value.detach(), *torch.autograd.grad(value, (hidden, items))]


@pytest.mark.usefixtures("tile_bytes")
@pytest.mark.parametrize(("n_buckets", "size_x", "size_y"), [(1, 1, 1), (1, 11, 5), (3, 4, 6), (8, 3, 2), (5, 11, 13)])
def test_value_gradients_and_coverage_match_the_definition(make_problem, n_buckets, size_x, size_y) -> None:
    problem = make_problem()
    centres = torch.randn(n_buckets, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    loss = Sce(13, n_buckets, size_x, size_y)
    tiled = run(lambda x, w, y: loss(x, w, y, centres=centres), problem)
    share = []

    def twin(x, w, y):
        value, covered = naive(x, w, y, centres, size_x, size_y)
        share.append(covered)
        return value

    torch.testing.assert_close(tiled, run(twin, problem))
    assert loss.covered_share is not None
    assert loss.covered_share.item() == pytest.approx(share[0])


def test_one_bucket_that_holds_everything_is_full_cross_entropy(make_problem) -> None:
    problem = make_problem()
    loss = Sce(13, 1, 11, 13)
    torch.testing.assert_close(run(loss, problem), run(Ce(), problem))
    assert loss.covered_share == 1


def test_a_short_batch_fills_the_buckets_with_what_it_has(make_problem) -> None:
    """The published code asks topk for more positions than there are, and raises."""
    problem = make_problem(n=3)
    torch.testing.assert_close(run(Sce(13, 2, 1000, 13), problem), run(Ce(), problem))


def test_a_position_in_no_bucket_gets_no_gradient_and_does_not_count(make_problem) -> None:
    problem = make_problem()
    centres = problem.hidden[:1]
    hidden, items = problem.leaves
    loss = Sce(13, 1, 2, 13)
    loss(hidden, items, problem.targets, centres=centres).backward()
    covered = hidden.grad.abs().sum(1) > 0
    assert covered.sum() == 2
    assert loss.covered_share is not None
    assert loss.covered_share.item() == pytest.approx(2 / 11)


def test_a_position_whose_loss_is_zero_is_covered(make_problem) -> None:
    """Its bucket holds its own target alone. The published code drops positions whose loss is 0 from the mean."""
    problem = make_problem(n=2, n_items=2, width=2)
    items = torch.eye(2, dtype=torch.float64)
    hidden = torch.tensor([[3.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
    loss = Sce(2, 1, 2, 1)
    value = loss(hidden, items, torch.tensor([0, 1]), centres=torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    wrong = torch.logaddexp(hidden[1, 0], hidden[1, 1]) - hidden[1, 1]
    torch.testing.assert_close(value, wrong / 2)
    assert loss.covered_share == 1
    assert problem.hidden.shape == hidden.shape


def test_gradients_reach_the_items_of_the_bucket(make_problem) -> None:
    """One published port detaches the item table, so that wrong items are never pushed away."""
    problem = make_problem()
    hidden, items = problem.leaves
    Sce(13, 1, 11, 13)(hidden, items, problem.targets).backward()
    not_targets = [item for item in range(13) if item not in problem.targets.tolist()]
    assert items.grad[not_targets].abs().sum(1).gt(0).all()


@pytest.mark.parametrize("mix_x", [False, True])
def test_the_generator_decides_the_centres(make_problem, mix_x: bool) -> None:
    problem = make_problem()
    loss = Sce(13, 2, 4, 3, mix_x)

    def value(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return loss(problem.hidden, problem.items, problem.targets, None, generator).item()

    assert value(1) == value(1)
    assert len({value(seed) for seed in range(6)}) > 1


def test_mixed_centres_are_mixtures_of_the_states(make_problem, monkeypatch) -> None:
    """States in a plane give centres in that plane, all of them, over several parts of the batch."""
    monkeypatch.setattr("seqrec.losses.sce._MIXED_AT_A_TIME", 4)
    problem = make_problem(n=11, width=5)
    flat = problem.hidden.clone()
    flat[:, 2:] = 0
    centres = Sce(13, 50, 4, 3, mix_x=True)._centres(flat, torch.Generator().manual_seed(0))
    assert not centres[:, 2:].any()
    # Independent weights of variance 1 / sqrt(D): E[b b'] = X'X / sqrt(D).
    many = Sce(13, 40_000, 4, 3, mix_x=True)._centres(flat, torch.Generator().manual_seed(0))
    expected = flat.T @ flat / 5**0.5
    torch.testing.assert_close(many.T @ many / 40_000, expected, rtol=0.05, atol=0.05)


def test_a_bucket_larger_than_the_catalog_is_refused() -> None:
    with pytest.raises(
        InfeasibleError, match=r"loss\.bucket_size_y: got 14; expected at most the catalog \(13 items\)\."
    ):
        Sce(13, 1, 1, 14)
