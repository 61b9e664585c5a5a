"""bce, bce_plus, gbce against twins written out score by score."""

from __future__ import annotations

import math

import pytest
import torch

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.losses.bce import Bce, BcePlus, Gbce

K = 4


@pytest.fixture
def negatives() -> Negatives:
    return Negatives(torch.randint(13, (11, K), generator=torch.Generator().manual_seed(5)))


def scores(problem, negatives: Negatives):
    """[(positive, [negatives])] as Python floats."""
    logits = (problem.hidden @ problem.items.T).tolist()
    for row, target, ids in zip(logits, problem.targets.tolist(), negatives.ids.tolist(), strict=True):
        yield row[target], [row[item] for item in ids]


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


@pytest.mark.usefixtures("tile_bytes")
def test_bce_is_the_mean_over_positive_and_negatives(make_problem, negatives: Negatives) -> None:
    problem = make_problem()
    rows = [
        (-math.log(sigmoid(good)) - sum(math.log(1 - sigmoid(bad)) for bad in bads)) / (1 + K)
        for good, bads in scores(problem, negatives)
    ]
    value = Bce(13, K)(problem.hidden, problem.items, problem.targets, negatives)
    assert value.item() == pytest.approx(sum(rows) / len(rows), rel=1e-12)


@pytest.mark.usefixtures("tile_bytes")
@pytest.mark.parametrize("gbce_t", [0.0, 0.75, 1.0])
def test_gbce_raises_the_positives_likelihood_to_the_power_beta(make_problem, negatives, gbce_t: float) -> None:
    problem = make_problem()
    alpha = K / 12
    beta = alpha * (gbce_t * (1 - 1 / alpha) + 1 / alpha)
    rows = []
    for good, bads in scores(problem, negatives):
        transformed = math.log(1 / (sigmoid(good) ** -beta - 1))
        rows.append((-math.log(sigmoid(transformed)) - sum(math.log(1 - sigmoid(bad)) for bad in bads)) / (1 + K))
    value = Gbce(13, K, gbce_t)(problem.hidden, problem.items, problem.targets, negatives)
    assert value.item() == pytest.approx(sum(rows) / len(rows), rel=1e-12)


def test_gbce_without_calibration_is_bce(make_problem, negatives: Negatives) -> None:
    problem = make_problem()
    arguments = problem.hidden, problem.items, problem.targets, negatives
    assert Gbce(13, K, 0.0)(*arguments) == Bce(13, K)(*arguments)


@pytest.mark.parametrize("score", [20.0, 200.0, -200.0])
def test_gbce_is_finite_where_the_transformed_score_is_not(score: float) -> None:
    """sigmoid(20) is 1 in float32, and 1 / (1**-beta - 1) infinite; sigmoid(-200) is 0."""
    hidden = torch.full((1, 1), score, requires_grad=True)
    loss = Gbce(1000, 1, 0.75)
    value = loss(hidden, torch.tensor([[1.0], [0.0]]), torch.tensor([0]), Negatives(torch.tensor([[1]])))
    expected = (loss.beta * max(0.0, -score) + math.log(2)) / 2
    assert value.item() == pytest.approx(expected, abs=1e-6)
    (slope,) = torch.autograd.grad(value, hidden)
    assert slope.item() == pytest.approx(-loss.beta / 2 if score < 0 else 0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("n_items", "n", "beta"), [(101, 25, 1 - 0.8 * 0.75), (11, 10, 1.0), (11, 500, 1.0), (1, 3, 1.0)]
)
def test_the_sampling_rate_behind_beta_never_exceeds_one(n_items: int, n: int, beta: float) -> None:
    assert Gbce(n_items, n, 0.8).beta == pytest.approx(beta)


@pytest.mark.usefixtures("tile_bytes")
def test_bce_plus_sums_over_the_negatives(make_problem, negatives: Negatives) -> None:
    problem = make_problem()
    rows = [
        -math.log(sigmoid(good) + 1e-6) - sum(math.log(1 - sigmoid(bad) + 1e-6) for bad in bads)
        for good, bads in scores(problem, negatives)
    ]
    loss = BcePlus(NegativesRequest(K, "position"))
    value = loss(problem.hidden, problem.items, problem.targets, negatives)
    assert value.item() == pytest.approx(sum(rows) / len(rows), rel=1e-10)


@pytest.mark.parametrize("score", [-1e4, -90.0, -20.0, -13.0, 0.0, 9.0, 20.0, 90.0, 1e4])
def test_bce_plus_in_float32_has_the_accuracy_of_float64(score: float) -> None:
    """Both logarithms; the published clamp at +-100 is never reached."""

    def value(dtype: torch.dtype) -> torch.Tensor:
        hidden, items = torch.full((1, 1), score, dtype=dtype), torch.tensor([[1.0], [1.0]], dtype=dtype)
        loss = BcePlus(NegativesRequest(1, "position"))
        return loss(hidden, items, torch.tensor([0]), Negatives(torch.tensor([[1]])))

    one_minus = 1 / (1 + math.exp(min(score, 700)))
    positive, negative = -math.log(1 - one_minus + 1e-6), -math.log(one_minus + 1e-6)
    assert abs(positive) < 100
    assert abs(negative) < 100
    assert value(torch.float64).item() == pytest.approx(positive + negative, rel=1e-9, abs=1e-12)
    assert value(torch.float32).item() == pytest.approx(positive + negative, rel=3e-7, abs=1e-9)


def test_requests_state_the_papers_sampling() -> None:
    assert Bce(13, 3).request == NegativesRequest(
        3, "position", "uniform", with_replacement=False, exclude_history=True
    )
    assert Gbce(13, 3, 0.5).request == NegativesRequest(3, "position", "uniform", True, exclude_history=False)
