"""rece against twins in both forms: each pair once, and logit - log(times found); chunks of any size."""

from __future__ import annotations

import math

import pytest
import torch

from seqrec.losses.ce import Ce
from seqrec.losses.rece import Rece


def candidates(vectors_x, vectors_w, normals, n_chunks: int, reach: int) -> list[list[int]]:
    """Item ids in reach of each state, by lists and slices."""

    def chunks(vectors) -> list[list[int]]:
        buckets = (vectors @ normals.T).argmax(1).tolist()
        order = sorted(range(len(buckets)), key=lambda index: buckets[index])
        edges = [math.floor(q * len(order) / n_chunks) for q in range(n_chunks + 1)]
        return [order[edges[q] : edges[q + 1]] for q in range(n_chunks)]

    of_states, of_items = chunks(vectors_x), chunks(vectors_w)
    found: list[list[int]] = [[] for _ in vectors_x]
    for q, rows in enumerate(of_states):
        near = [item for other in range(max(0, q - reach), min(n_chunks, q + reach + 1)) for item in of_items[other]]
        for row in rows:
            found[row] = near
    return found


def naive(hidden, items, targets, projections, n_chunks: int, reach: int, form: str):
    rounds = [candidates(hidden, items, normals, n_chunks, reach) for normals in projections]
    losses = []
    for i, y in enumerate(targets.tolist()):
        found = [item for by_round in rounds for item in by_round[i] if item != y]
        if form == "set":
            logits = [hidden[i] @ items[item] for item in sorted(set(found))]
        else:
            logits = [hidden[i] @ items[item] - math.log(found.count(item)) for item in found]
        positive = hidden[i] @ items[y]
        losses.append(torch.stack([positive, *logits]).logsumexp(0) - positive)
    return torch.stack(losses).mean()


def run(function, problem) -> list[torch.Tensor]:
    hidden, items = problem.leaves
    value = function(hidden, items, problem.targets)
    return [value.detach(), *torch.autograd.grad(value, (hidden, items))]


def normals(rounds: int, n_buckets: int, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(rounds, n_buckets, width, generator=generator, dtype=torch.float64)


@pytest.mark.usefixtures("tile_bytes")
@pytest.mark.parametrize("form", ["set", "log count"])
@pytest.mark.parametrize(
    ("n", "n_items", "n_buckets", "per_chunk", "reach", "rounds"),
    [
        (12, 12, 4, 1, 0, 1),
        (11, 13, 4, 1, 1, 3),
        (11, 13, 5, 1, 0, 4),
        (11, 13, 6, 2, 1, 2),
        (23, 7, 5, 1, 1, 5),
        (3, 29, 7, 1, 2, 3),
        (11, 13, 40, 1, 1, 3),
    ],
    ids=["divides", "ragged", "no reach", "two buckets a chunk", "few items", "few states", "more chunks than things"],
)
def test_value_and_gradients_match_the_definition(
    make_problem, n, n_items, n_buckets, per_chunk, reach, rounds, form
) -> None:
    problem = make_problem(n=n, n_items=n_items)
    projections = normals(rounds, n_buckets)
    loss = Rece(n_buckets, reach, rounds, per_chunk)
    tiled = run(lambda x, w, y: loss(x, w, y, projections=projections), problem)
    twin = run(lambda x, w, y: naive(x, w, y, projections, n_buckets // per_chunk, reach, form), problem)
    torch.testing.assert_close(tiled, twin)


def test_rounds_find_the_same_items_again(make_problem) -> None:
    """Else the test above would not see a missing correction: repeated rounds must not change the loss at all."""
    problem = make_problem()
    once = normals(1, 4)
    expected = run(lambda x, w, y: Rece(4, 1, 1)(x, w, y, projections=once), problem)
    thrice = run(lambda x, w, y: Rece(4, 1, 3)(x, w, y, projections=once.expand(3, -1, -1)), problem)
    torch.testing.assert_close(thrice, expected)
    full = run(Ce(), problem)
    assert expected[0] < full[0], "the candidates must not be the whole catalog"


@pytest.mark.parametrize(
    ("n_buckets", "per_chunk", "reach", "rounds"),
    [(1, 1, 0, 1), (6, 6, 0, 2), (4, 1, 3, 1), (4, 1, 9, 2), (4, 1, 100_000, 3)],
)
def test_one_chunk_or_reach_over_all_chunks_is_full_cross_entropy(
    make_problem, n_buckets, per_chunk, reach, rounds
) -> None:
    problem = make_problem()
    loss = Rece(n_buckets, reach, rounds, per_chunk)
    torch.testing.assert_close(run(loss, problem), run(Ce(), problem))


def test_chunks_do_not_wrap_around(make_problem) -> None:
    """Three chunks, reach 1: the first and the last do not see each other."""
    items = torch.diag(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    loss = Rece(3, 1, 1)
    projections = items[None]
    value = loss(items * 2, items, torch.arange(3), projections=projections)
    full, without_one = math.log(math.exp(2) + 2) - 2, math.log(math.exp(2) + 1) - 2
    assert value.item() == pytest.approx((full + 2 * without_one) / 3)


def test_the_target_counts_once_whether_found_or_not(make_problem) -> None:
    problem = make_problem()
    hidden, items = problem.leaves
    projections = normals(1, 3)
    value = Rece(3, 0, 1)(hidden, items, problem.targets, projections=projections)
    near = candidates(problem.hidden, problem.items, projections[0], 3, 0)
    assert {bool(int(y) in found) for y, found in zip(problem.targets, near, strict=True)} == {True, False}
    torch.testing.assert_close(value, naive(hidden, items, problem.targets, projections, 3, 0, "set"))


def test_the_generator_decides_the_projections(make_problem) -> None:
    problem = make_problem()

    def value(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return Rece(5, 0, 1)(problem.hidden, problem.items, problem.targets, None, generator).item()

    assert value(1) == value(1)
    assert len({value(seed) for seed in range(6)}) > 1


def test_many_chunks_need_a_wider_number(make_problem) -> None:
    problem = make_problem()
    tables = Rece(40_000, 1, 2)
    projections = normals(2, 40_000)
    value = tables(problem.hidden, problem.items, problem.targets, projections=projections)
    expected = naive(problem.hidden, problem.items, problem.targets, projections, 40_000, 1, "set")
    torch.testing.assert_close(value, expected)
