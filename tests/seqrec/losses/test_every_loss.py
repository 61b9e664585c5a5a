"""Laws that hold for every loss: gradients, order, emptiness, size, precision, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.errors import message
from seqrec.losses.ce_minus import CeMinus


@pytest.mark.usefixtures("tile_bytes")
def test_gradients_of_states_and_items_are_those_of_the_value(case, make_problem) -> None:
    problem = make_problem(n=5, n_items=7, width=3)
    assert torch.autograd.gradcheck(lambda x, w: case(x, w, problem.targets), problem.leaves)


@pytest.mark.usefixtures("tile_bytes")
def test_the_order_of_positions_does_not_matter(orderless_case, make_problem) -> None:
    case, problem = orderless_case, make_problem()
    loss = case.loss(len(problem.items))
    negatives = case.negatives(loss, len(problem.hidden), len(problem.items))
    hidden, items = problem.leaves
    order = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(3))
    if negatives is not None:
        shuffled = (
            Negatives(negatives.ids[order], None, negatives.log_q)
            if negatives.group is None
            else Negatives(negatives.ids, negatives.group[order], negatives.log_q)
        )
    else:
        shuffled = None
    value = case(hidden, items, problem.targets, negatives)
    again = case(hidden[order], items, problem.targets[order], shuffled)
    torch.testing.assert_close(again, value)
    for one, other in zip(
        torch.autograd.grad(value, (hidden, items)), torch.autograd.grad(again, (hidden, items)), strict=True
    ):
        torch.testing.assert_close(other, one)


def test_tiles_do_not_change_value_or_gradients(case, make_problem, monkeypatch) -> None:
    problem = make_problem(n=17, n_items=19)

    def run() -> tuple[Tensor, ...]:
        hidden, items = problem.leaves
        value = case(hidden, items, problem.targets)
        return value.detach(), *torch.autograd.grad(value, (hidden, items))

    whole = run()
    for tile_bytes in (1, 400, 900, 5000):
        for module in ("candidates", "ce", "rece", "sce"):
            monkeypatch.setattr(f"seqrec.losses.{module}.TILE_BYTES", tile_bytes)
        torch.testing.assert_close(run(), whole)


@pytest.mark.parametrize("magnitude", [1e-30, 1e4])
def test_extreme_logits_give_finite_value_and_gradients(case, make_problem, magnitude: float) -> None:
    problem = make_problem(n=20, dtype=torch.float32)
    largest = (problem.hidden @ problem.items.T).abs().max()
    hidden, items = problem.scaled(magnitude / float(largest)).leaves
    value = case(hidden, items, problem.targets)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(items.grad).all()


def test_non_finite_states_show_in_the_loss(case, make_problem) -> None:
    """Divergence must not be swallowed by a mask, a maximum or a position that is left out."""
    hidden, items = make_problem(dtype=torch.float32).leaves
    spoiled = torch.full_like(hidden, torch.nan)
    assert torch.isnan(case(spoiled, items, make_problem().targets))


def test_no_positions_are_a_zero_with_a_graph(case, make_problem) -> None:
    hidden, items = make_problem(n=0).leaves
    value = case(hidden, items, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert hidden.grad.shape == (0, 5)
    assert not items.grad.any()


def test_one_position_and_one_item(case, make_problem) -> None:
    hidden, items = make_problem(n=1, n_items=1).leaves
    value = case(hidden, items, torch.zeros(1, dtype=torch.int64))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(hidden.grad).all()


def test_half_precision_is_computed_in_float32(case, make_problem) -> None:
    problem = make_problem(dtype=torch.float32)
    hidden, items = problem.hidden.bfloat16().requires_grad_(), problem.items.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = case(hidden, items, problem.targets)
    assert value.dtype == torch.float32
    value.backward()
    assert hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value, case(hidden.detach().float(), items.detach().float(), problem.targets))


def test_a_retained_graph_gives_the_same_gradients_twice_and_scales(case, make_problem) -> None:
    problem = make_problem()
    hidden, items = problem.leaves
    value = 3 * case(hidden, items, problem.targets)
    first = torch.autograd.grad(value, (hidden, items), retain_graph=True)
    second = torch.autograd.grad(value, (hidden, items))
    plain = torch.autograd.grad(case(hidden, items, problem.targets), (hidden, items))
    for one, two, unscaled in zip(first, second, plain, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, 3 * unscaled)


def test_value_and_gradients_are_those_of_autograd(case, make_problem) -> None:
    problem = make_problem()
    hidden, items = problem.leaves
    expected = case(hidden, items, problem.targets)
    value, *gradients = case.value_and_gradients(hidden, items, problem.targets)
    assert not any(tensor.requires_grad for tensor in (value, *gradients))
    torch.testing.assert_close(value, expected.detach())
    for found, wanted in zip(gradients, torch.autograd.grad(expected, (hidden, items)), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("tile_bytes")
def test_positions_of_weight_zero_are_absent_and_others_count_as_told(case, make_problem) -> None:
    """What a captured step relies on: a batch in a larger shape has the value and gradients of the batch alone."""
    problem, n = make_problem(), 7
    loss = case.loss(len(problem.items))
    negatives = case.negatives(loss, len(problem.hidden), len(problem.items))
    weights = torch.zeros(len(problem.hidden), dtype=torch.float64)
    weights[:n] = 1 / n
    if not loss.capturable:
        with pytest.raises(ValueError, match=r"weights_N: got \(11,\); expected None with this loss"):
            case(*problem.leaves, problem.targets, negatives, weights_N=weights)
        return
    alone = None
    if negatives is not None:
        ids = negatives.ids[:n] if negatives.group is None else negatives.ids
        alone = Negatives(ids, None if negatives.group is None else negatives.group[:n], negatives.log_q)
    value, to_hidden, to_items = case.value_and_gradients(
        problem.hidden, problem.items, problem.targets, negatives, weights_N=weights
    )
    exact = case.value_and_gradients(problem.hidden[:n], problem.items, problem.targets[:n], alone)
    torch.testing.assert_close((value, to_hidden[:n], to_items), exact)
    assert not to_hidden[n:].any()
    double = case(problem.hidden, problem.items, problem.targets, negatives, weights_N=2 * weights)
    torch.testing.assert_close(double, 2 * value)


def test_groups_of_known_size_need_no_question_to_the_device(make_problem, monkeypatch) -> None:
    problem = make_problem(n=9)
    group = torch.tensor([0, 0, 0, 1, 3, 3, 0, 1, 3])  # nobody uses draw 2
    ids = torch.randint(13, (4, 6), generator=torch.Generator().manual_seed(1))
    loss = CeMinus(NegativesRequest(6, "user"), 13)
    for tile_bytes in (2**20, 300):
        monkeypatch.setattr("seqrec.losses.candidates.TILE_BYTES", tile_bytes)
        found = loss.value_and_gradients(
            problem.hidden, problem.items, problem.targets, Negatives(ids, group, largest_group=5)
        )
        asked = loss.value_and_gradients(problem.hidden, problem.items, problem.targets, Negatives(ids, group))
        torch.testing.assert_close(found, asked)


def test_without_gradients_the_value_is_the_same(case, make_problem) -> None:
    problem = make_problem()
    with torch.no_grad():
        value = case(problem.hidden, problem.items, problem.targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, case(*problem.leaves, problem.targets).detach())


@pytest.mark.parametrize("bad", [-1, 13])
def test_a_target_outside_the_catalog_is_named(case, make_problem, bad: int) -> None:
    problem = make_problem()
    targets = problem.targets.clone()
    targets[4] = bad
    with pytest.raises(ValueError, match=rf"targets_N: got {bad}; expected item ids in \[0, 13\)\."):
        case(problem.hidden, problem.items, targets)


def test_targets_must_match_the_states(case, make_problem) -> None:
    problem = make_problem()
    with pytest.raises(ValueError, match=r"targets_N: got \(10,\); expected one target a hidden state, \(11,\)"):
        case(problem.hidden, problem.items, problem.targets[:10], Negatives(torch.zeros(11, 6, dtype=torch.int64)))


def test_negatives_must_match_the_request(case, make_problem) -> None:
    problem = make_problem()
    loss = case.loss(13)
    given = None if loss.request is not None else Negatives(torch.zeros(11, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="negatives: got"):
        loss(problem.hidden, problem.items, problem.targets, given)
    if loss.request is not None:
        with pytest.raises(ValueError, match="got 10; expected one draw, or one group, for each of the 11 positions"):
            loss(
                problem.hidden,
                problem.items,
                problem.targets,
                Negatives(torch.zeros(10, loss.request.n, dtype=torch.int64)),
            )


def test_messages_have_the_projects_form() -> None:
    assert message("targets_N", 13, "item ids in [0, 13)") == "targets_N: got 13; expected item ids in [0, 13)."
