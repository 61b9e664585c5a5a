"""Exact cross-entropy's kernels against the eager twin in float64; without a GPU in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels import cross_entropy_launch as launch
from seqrec.kernels.cross_entropy import cross_entropy, linear_cross_entropy, log_partition
from seqrec.kernels.tiles import Tile
from seqrec.kernels.twins import cross_entropy as twin

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cannot multiply bfloat16.
MODES: dict[str, dict[str, Any]] = {
    "exact": {"dtype": torch.float32},
    "split": {"dtype": torch.float32, "split": True},
    "half": {"dtype": torch.float16},
} | ({"bfloat": {"dtype": torch.bfloat16}} if DEVICE == "cuda" else {})
BOUNDS = {"exact": (1e-6, 2e-6), "split": (1e-6, 4e-6), "half": (1e-6, 4e-4), "bfloat": (1e-6, 3e-3)}
"""Of the value and of the gradients, relative to the whole tensor; 16 bits: of the problem of the rounded operands."""


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel is to fill holds NaN before."""
    plain = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = plain(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(-(2**31) + 1)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles out of few numbers, and every way of cutting at once."""
    tiles = {kind: {8: {512: Tile(16, 16, 4, 2)}} for kind in launch.TILES}
    tiles["backward"] = {8: {512: Tile(32, 16, 4, 2)}}
    monkeypatch.setattr(launch, "TILES", tiles)
    monkeypatch.setattr(launch, "TARGETS", 16)


def normal(*shape: int, seed: int = 0, sd: float = 1.0) -> Tensor:
    return sd * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def ids(N: int, V: int, seed: int = 0) -> Tensor:
    """Popular ones first, as they come: some items many times, most never."""
    uniform = torch.rand(N, generator=torch.Generator().manual_seed(seed))
    return (uniform**3 * V).long().to(DEVICE)


def error(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    return float((found.double() - wanted).norm() / wanted.norm())


def equal(first: tuple[Tensor | None, ...], second: tuple[Tensor | None, ...]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(one is not None and two is not None and torch.equal(one, two) for one, two in pairs)


def exactly(mode: str, hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None) -> Any:
    tables = [table.to(MODES[mode]["dtype"]).double() for table in (hidden, items)]
    return twin.cross_entropy(*tables, targets, None if weights is None else weights.double())


def agree(
    mode: str, hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None = None, spacing: float = 0.0
) -> tuple[Tensor, ...]:
    found = cross_entropy(hidden, items, targets, weights, **MODES[mode])
    wanted = exactly(mode, hidden, items, targets, weights)
    of_value, of_gradient = (bound + spacing for bound in BOUNDS[mode])
    assert error(found[0], wanted[0]) <= of_value
    assert error(found[1], wanted[1]) <= of_gradient
    assert error(found[2], wanted[2]) <= of_gradient
    value = cross_entropy(hidden, items, targets, weights, **MODES[mode], gradients=False)
    assert value[1:] == (None, None)
    assert error(value[0], wanted[0]) <= of_value
    assert found[1] is not None
    assert found[2] is not None
    return found[0], found[1], found[2]


SHAPES = [(1, 1, 16), (1, 130, 24), (70, 129, 24), (33, 301, 64), (130, 40, 1), (5, 65, 96)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("N", "V", "D"), SHAPES)
def test_against_the_twin(N: int, V: int, D: int, mode: str) -> None:
    if V == 1:  # one item: everything is 0
        for one in cross_entropy(normal(N, D), normal(V, D), ids(N, V), **MODES[mode]):
            assert one is not None
            assert float(one.abs().max()) <= 1e-5
        return
    agree(mode, normal(N, D), normal(V, D, seed=1, sd=0.3), ids(N, V))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("small_tiles")
def test_cut_every_way(mode: str) -> None:
    N, V, D = 100, 83, 40
    p = launch.plan(N, V, D, MODES[mode]["dtype"], "split" in MODES[mode], True, torch.device(DEVICE))
    assert p.stretches > 1
    assert p.row_stretches > 1
    agree(mode, normal(N, D), normal(V, D, seed=1, sd=0.3), ids(N, V))


@pytest.mark.parametrize("mode", MODES)
def test_weights_and_spare_rows(mode: str) -> None:
    N, V, D = 70, 90, 32
    weights = torch.rand(N, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    weights[::3] = 0
    weights[1] = 1e-6
    weights[2] = 40
    hidden, items, targets = normal(N, D), normal(V, D, seed=1, sd=0.3), ids(N, V)
    _, to_hidden, to_items = agree(mode, hidden, items, targets, weights)
    assert not to_hidden[::3].any()
    kept = weights > 0
    _, _, alone = cross_entropy(hidden[kept], items, targets[kept], weights[kept], **MODES[mode])
    assert error(alone, to_items.double()) <= 1e-6


def test_weights_of_zero_alone() -> None:
    found = cross_entropy(normal(5, 16), normal(9, 16), ids(5, 9), torch.zeros(5, device=DEVICE), dtype=torch.float32)
    assert not any(one is None or one.any() for one in found)


@pytest.mark.parametrize("rows", ["one item", "all items", "last item"])
@pytest.mark.usefixtures("small_tiles")
def test_targets_however_they_lie(rows: str) -> None:
    """Far more positions than a block for one item, none for most; each item once; the last one of a ragged tile."""
    N, V, D = 90, 83, 16
    targets = {
        "one item": torch.full((N,), 37),
        "all items": torch.arange(N).flip(0) % V,
        "last item": torch.full((N,), V - 1),
    }[rows]
    agree("exact", normal(N, D), normal(V, D, seed=1), targets.to(DEVICE))


@pytest.mark.parametrize("mode", MODES)
def test_peaked_logits(mode: str) -> None:
    """Logits of standard deviation 12, targets probable: where one number decides, and 1 - p is what is left.

    The logits in base 2 reach 64, where float32's next number is 8e-6 away."""
    N, V, D = 40, 150, 64
    hidden, items = normal(N, D, sd=1.5), normal(V, D, seed=1)
    targets = (hidden @ items.T).topk(2, dim=1).indices[:, 1]
    targets[::2] = (hidden @ items.T).argmax(1)[::2]
    agree(mode, hidden, items, targets, spacing=8e-6)


@pytest.mark.parametrize("mode", MODES)
def test_small_probabilities_survive_rounding(mode: str) -> None:
    """All but 1e-4 of the mass in the target, the rest 4e-8 an item: 16 bits alone would lose both."""
    N, V, D = 4, 3000, 16
    hidden = torch.zeros(N, D, device=DEVICE)
    hidden[:, 0] = 5.6875
    items = normal(V, D, seed=1, sd=0.05)
    items[:, 0] = -1.0
    items[0, 0] = 2.0
    targets = torch.zeros(N, dtype=torch.int64, device=DEVICE)
    found = cross_entropy(hidden, items, targets, **MODES[mode])
    wanted = exactly(mode, hidden, items, targets)
    assert 1e-5 < float(wanted[0]) < 1e-3
    # 1 - p is 1.2e-4; float32's next number after the logit, 16.4 in base 2, is 2e-6 away: 1 % of it.
    for one, other in zip(found, wanted, strict=True):
        assert error(one, other) <= 2e-2
    assert found[2] is not None
    assert error(found[2][0], wanted[2][0]) <= 2e-2


@pytest.mark.parametrize("mode", ["exact", "half"])
def test_log_partition(mode: str) -> None:
    hidden, items = normal(35, 24), normal(130, 24, seed=1)
    found = log_partition(hidden, items, **MODES[mode])
    assert error(found, twin.log_partition(hidden.double(), items.double())) <= BOUNDS[mode][0] * (
        1 if mode == "exact" else 1000
    )
    assert log_partition(hidden[:0], items).shape == (0,)


@pytest.mark.parametrize("wrong", [-1, 90, -(2**40), 2**40])
def test_a_target_outside_the_catalog(wrong: int) -> None:
    N, V, D = 20, 90, 16
    targets = ids(N, V)
    targets[7] = wrong
    value, _, to_items = cross_entropy(normal(N, D), normal(V, D), targets, dtype=torch.float32)
    assert value.isnan()
    assert torch.isfinite(to_items).all()
    assert twin.cross_entropy(normal(N, D), normal(V, D), targets)[0].isnan()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("table", [0, 1])
def test_no_numbers(table: int, number: float) -> None:
    tables = [normal(20, 16), normal(90, 16, seed=1)]
    tables[table][3, 5] = number
    for mode in MODES.values():
        assert cross_entropy(*tables, ids(20, 90), **mode)[0].isnan()


@pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning", "ignore:All-NaN:RuntimeWarning"
)
def test_numbers_that_half_precision_cannot_hold() -> None:
    hidden, items = normal(20, 16).abs(), normal(90, 16, seed=1)
    items[89, 4] = -1e5  # a score of -inf, which a sum of exponentials does not show
    assert cross_entropy(hidden, items, ids(20, 80))[0].isnan()
    hidden[4, 4], items[89, 4] = 1e5, 0
    assert cross_entropy(hidden, items, ids(20, 90))[0].isnan()


def test_no_positions() -> None:
    found = cross_entropy(normal(0, 16), normal(9, 16), ids(0, 9))
    assert [None if one is None else tuple(one.shape) for one in found] == [(), (0, 16), (9, 16)]
    assert not any(one is None or one.any() for one in found)
    assert cross_entropy(normal(0, 16), normal(9, 16), ids(0, 9), gradients=False)[1:] == (None, None)


def test_other_inputs() -> None:
    """Columns of a wider table, halves, doubles, int32 targets: the same numbers, the same bits."""
    wide, items = normal(30, 48), normal(70, 24, seed=1).half()
    hidden, targets = wide[:, ::2], ids(30, 70)
    first = cross_entropy(hidden, items, targets)
    assert equal(first, cross_entropy(hidden.contiguous(), items.float(), targets))
    assert equal(first, cross_entropy(hidden.double(), items.double(), targets.int()))


@pytest.mark.usefixtures("small_tiles")
def test_deterministic() -> None:
    arguments = (normal(90, 24), normal(83, 24, seed=1), ids(90, 83))
    assert equal(cross_entropy(*arguments), cross_entropy(*arguments))


def test_differentiable() -> None:
    hidden, items, targets = normal(20, 16).requires_grad_(), normal(50, 16, seed=1).requires_grad_(), ids(20, 50)
    value = linear_cross_entropy(hidden, items, targets, dtype=torch.float32)
    wanted = twin.linear_cross_entropy(hidden.double(), items.double(), targets)
    assert error(value.detach(), wanted.detach()) <= 1e-6
    found = torch.autograd.grad(3 * value, (hidden, items))
    for one, other in zip(found, torch.autograd.grad(3 * wanted, (hidden, items)), strict=True):
        assert error(one, other.double()) <= 1e-5
    (alone,) = torch.autograd.grad(linear_cross_entropy(hidden, items.detach(), targets, dtype=torch.float32), hidden)
    torch.testing.assert_close(3 * alone, found[0])
    low = hidden.detach().half().requires_grad_()
    linear_cross_entropy(low, items, targets).backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.float16
    assert not linear_cross_entropy(hidden.detach(), items.detach(), targets).requires_grad
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, items, targets).requires_grad


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("N", [0, 20])
def test_the_operators_are_what_torch_expects(N: int, gradients: bool) -> None:
    hidden, items, targets = normal(N, 16), normal(50, 16, seed=1), ids(N, 50)
    checks = ("test_schema", "test_faketensor")
    for weights in (None, torch.ones(N, device=DEVICE)):
        arguments = (hidden, items, targets, weights, torch.float32, False, gradients)
        torch.library.opcheck(torch.ops.seqrec.cross_entropy.default, arguments, test_utils=checks)
    torch.library.opcheck(
        torch.ops.seqrec.log_partition.default, (hidden, items, torch.float32, False), test_utils=checks
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"items_VD": torch.zeros(9, 8)}, "items_VD: got"),
        ({"items_VD": torch.zeros(0, 16)}, "items_VD: got no rows"),
        ({"targets_N": torch.zeros(4, dtype=torch.int64)}, "targets_N: got"),
        ({"targets_N": torch.zeros(5)}, "targets_N: got"),
        ({"weights_N": torch.zeros(4)}, "weights_N: got"),
        ({"dtype": torch.float64}, "dtype: got torch.float64; expected"),
        ({"split": True}, "split: got True with torch.float16; expected"),
        ({"hidden_ND": torch.zeros(5, 513), "items_VD": torch.zeros(9, 513)}, "hidden_ND: got 513 columns; expected"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {
        "hidden_ND": torch.zeros(5, 16),
        "items_VD": torch.zeros(9, 16),
        "targets_N": torch.zeros(5, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=said):
        cross_entropy(**arguments | change)


@pytest.mark.parametrize("mode", MODES)
def test_every_plan_covers_its_work(mode: str) -> None:
    """Each tile and block in one stretch, none empty, partial results within their bounds."""
    options = {"split": False, "gradients": True, "device": torch.device(DEVICE)} | MODES[mode]
    for N in (1, 63, 64, 65, 300, 25_600, 131_072):
        for V in (1, 64, 127, 3_416, 12_101, 173_511, 1_000_001, 36_000_001):
            for D in (1, 24, 64, 100, 128, 256, 512):
                p = launch.plan(N, V, D, **options)
                assert p.n_padded % p.forward.rows == p.n_padded % p.backward.rows == p.n_padded % 16 == 0
                assert p.v_padded % p.forward.columns == p.v_padded % p.backward.columns == 0
                assert N <= p.n_padded < N + 128
                assert V <= p.v_padded < V + 128
                n_tiles = -(-V // p.forward.columns)
                assert (p.stretches - 1) * p.tiles < n_tiles <= p.stretches * p.tiles
                assert (p.row_stretches - 1) * p.blocks * p.backward.rows < p.n_padded
                assert p.n_padded <= p.row_stretches * p.blocks * p.backward.rows
                assert p.stretches == 1 or p.stretches * p.n_padded * p.width <= V * D + launch.ROOM
                assert p.row_stretches == 1 or p.row_stretches * V * D <= launch.ROOM
