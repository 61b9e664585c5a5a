"""RECE's kernels against the twin in float64: on the same tables values and gradients, and the tables themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels import rece as module, rece_launch, rece_tables
from seqrec.kernels.rece import hash_chunks, rece, rece_from_tables
from seqrec.kernels.rece_tables import Tables
from seqrec.kernels.tiles import Tile
from seqrec.kernels.twins import rece as twin

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT = {"dtype": torch.float32}


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel is to fill holds NaN before, or an id that no table has."""

    def fill(made: Tensor) -> Tensor:
        if made.dtype == torch.int64:
            return made
        return made.fill_(torch.nan if made.is_floating_point() else -1)

    for owner, name in ((Tensor, "new_empty"), (torch, "empty_like"), (torch, "empty")):
        plain = getattr(owner, name)

        def poisoned(*args: Any, plain: Any = plain, **kwargs: Any) -> Tensor:
            return fill(plain(*args, **kwargs))

        monkeypatch.setattr(owner, name, poisoned)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 x 16, so that small shapes have many tiles, and several of them in a window."""
    small = {9: {512: Tile(16, 16, 4, 2)}}
    monkeypatch.setattr(rece_launch, "TILES", dict.fromkeys(rece_launch.TILES, small))
    monkeypatch.setattr(rece_launch, "WORDS", 2)  # blocks of 64 positions
    monkeypatch.setattr(rece_launch, "ROOM", 0)
    monkeypatch.setattr(rece_launch, "COLLECTED", 32)
    monkeypatch.setattr(rece_tables, "TILES", small)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def case(N: int, V: int, D: int, rounds: int = 1, n_buckets: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, items, targets, projections)"""
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(4)).to(DEVICE)
    return normal(N, D), normal(V, D, seed=1), targets, normal(rounds, n_buckets, D, seed=2)


def close(found: Tensor | None, wanted: Tensor | None, bound: float = 2e-6) -> None:
    """Relative to the whole tensor."""
    assert found is not None
    assert wanted is not None
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    error = (found.double() - wanted.double()).norm()
    assert error <= bound * wanted.double().norm() + 1e-12, f"{error} of {wanted.norm()}"


def same(
    hidden: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None, tables: Tables, reach: int,
    count: Tensor | None = None, bound: float = 2e-6, **options: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The kernel's results, held against the twin's on the same tables."""
    given = {"tables": tables, "reach": reach, "count": count}
    found = rece_from_tables(hidden, items, targets, weights, **given, **{**EXACT, **options})
    wide = None if weights is None else weights.double()
    wanted = twin.rece_from_tables(hidden.double(), items.double(), targets, wide, **given)
    assert abs(float(found[0] - wanted[0])) <= max(bound, 2e-6) * (1 + abs(float(wanted[0])))
    for one, other in zip(found[1:], wanted[1:], strict=True):
        close(one, other, bound)
    return found


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("N", "V", "D", "rounds", "n_chunks", "reach"),
    [
        (37, 50, 24, 1, 7, 1),
        (50, 97, 16, 2, 7, 0),
        (33, 50, 24, 4, 9, 1),
        (19, 33, 24, 9, 13, 1),
        (9, 20, 16, 12, 11, 0),
        (40, 41, 16, 3, 5, 9),
        (1, 1, 16, 2, 3, 1),
        (1, 50, 16, 1, 1, 0),
        (5, 9, 16, 2, 31, 2),
    ],
)
def test_values_and_gradients(N: int, V: int, D: int, rounds: int, n_chunks: int, reach: int) -> None:
    hidden, items, targets, projections = case(N, V, D, rounds, n_chunks)
    tables = hash_chunks(hidden, items, projections, n_chunks, **EXACT)
    for dense in (False, True):
        same(hidden, items, targets, None, tables, reach, dense=dense)


@pytest.mark.parametrize("room", [0, 2**30])
def test_tiles_of_a_gpu(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(rece_launch, "ROOM", room)
    monkeypatch.setattr(rece_launch, "WORDS", 2)  # groups of 64 positions, several of them a block
    hidden, items, targets, projections = case(130, 321, 64, 2, 5)
    tables = hash_chunks(hidden, items, projections, 5, **EXACT)
    for dense in (False, True) if room else (True,):
        same(hidden, items, targets, normal(130, seed=5).abs(), tables, 1, dense=dense)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("count", "weighted", "dense"),
    [(0, False, False), (0, True, True), (1, True, False), (23, True, False), (23, False, True), (40, True, False)],
)
def test_spare_rows_change_nothing(count: int, weighted: bool, dense: bool) -> None:
    hidden, items, targets, projections = case(40, 50, 16, 2, 7)
    weights = normal(40, seed=5).abs() if weighted else None
    if weights is not None:
        weights[::3] = 0
        weights[count:] = 0
    real = torch.tensor(count, device=DEVICE)
    tables = hash_chunks(hidden, items, projections, 7, real, **EXACT)
    whole = same(hidden, items, targets, weights, tables, 1, real, dense=dense)
    assert whole[1] is not None
    assert not whole[1][count:].any()
    if count:
        alone = None if weights is None else weights[:count]
        few = hash_chunks(hidden[:count], items, projections, 7, **EXACT)
        part = same(hidden[:count], items, targets[:count], alone, few, 1, dense=dense)
        assert part[1] is not None
        assert part[2] is not None
        close(whole[0], part[0])
        close(whole[1][:count], part[1])
        close(whole[2], part[2])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("count", [None, 29])
@pytest.mark.parametrize("n_buckets", [1, 6, 40])
def test_tables(n_buckets: int, count: int | None) -> None:
    hidden, items, _, projections = case(43, 150, 24, 3, n_buckets)
    real = None if count is None else torch.tensor(count, device=DEVICE)
    found = hash_chunks(hidden, items, projections, 11, real, **EXACT)
    wanted = twin.hash_chunks(hidden, items, projections, 11, real)
    assert torch.equal(found.order, wanted.order)
    used = torch.ones(193, dtype=torch.bool, device=DEVICE)
    used[43 if count is None else count : 43] = False
    assert torch.equal(found.chunk[used, :3], wanted.chunk[used, :3])


@pytest.mark.usefixtures("small_tiles")
def test_more_tiles_of_buckets_than_256() -> None:
    """Wide vectors have narrow tiles of buckets."""
    hidden, items, _, projections = case(9, 40, 16, 1, 6000)
    found = hash_chunks(hidden, items, projections, 29, **EXACT)
    wanted = twin.hash_chunks(hidden, items, projections, 29)
    assert torch.equal(found.order, wanted.order)


@pytest.mark.usefixtures("small_tiles")
def test_the_whole_way_and_what_is_left_out() -> None:
    hidden, items, targets, projections = case(20, 41, 16, 2, 6)
    given: dict[str, Any] = {"projections": projections, "n_chunks": 6, "reach": 1}
    found = rece(hidden, items, targets, **given, **EXACT)
    for one, other in zip(found, twin.rece(hidden.double(), items.double(), targets, **given), strict=True):
        close(one, other)
    value, *nothing = rece(hidden, items, targets, **given, **EXACT, gradients=False)
    assert nothing == [None, None]
    assert torch.equal(value, found[0])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("rounds", "dense"), [(1, False), (3, False), (3, True)])
def test_repeats_to_the_bit(rounds: int, dense: bool) -> None:
    hidden, items, targets, projections = case(20, 41, 16, rounds, 6)
    if rounds == 1:
        targets = torch.randperm(41, generator=torch.Generator().manual_seed(1))[:20].to(DEVICE)  # no row gets two
    given: dict[str, Any] = {"projections": projections, "n_chunks": 6, "reach": 1, "dense": dense, **EXACT}
    first, second = (rece(hidden, items, targets, **given) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dense", [False, True])
def test_targets_that_many_positions_have(dense: bool) -> None:
    hidden, items, targets, projections = case(150, 41, 24, 2, 6)
    targets[10:90] = 7
    targets[100:] = 40
    targets[3] = 0
    tables = hash_chunks(hidden, items, projections, 6, **EXACT)
    same(hidden, items, targets, None, tables, 1, dense=dense)


@pytest.mark.usefixtures("small_tiles")
def test_half_precision() -> None:
    hidden, items, targets, projections = case(60, 150, 32, 2, 6)
    tables = hash_chunks(hidden, items, projections, 6, dtype=torch.float16)
    exact = hash_chunks(hidden, items, projections, 6, **EXACT)
    assert (tables.order == exact.order).float().mean() > 0.9
    same(hidden / 4, items / 4, targets, None, tables, 1, bound=1e-3, dtype=torch.float16)


@pytest.mark.usefixtures("small_tiles")
def test_strides_and_other_dtypes() -> None:
    hidden, items, targets, projections = case(20, 41, 16, 2, 6)
    tables = hash_chunks(hidden, items, projections, 6, **EXACT)
    strided = targets.repeat_interleave(2)[::2].int()
    found = rece_from_tables(hidden.T.contiguous().T, items.double(), strided, tables=tables, reach=1, **EXACT)
    for one, other in zip(found, same(hidden, items, targets, None, tables, 1), strict=True):
        close(one, other)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("target", [-1, 41, 2**40])
def test_a_target_that_is_no_item(target: int) -> None:
    hidden, items, targets, projections = case(20, 41, 16, 2, 6)
    targets[3] = target
    given: dict[str, Any] = {"projections": projections, "n_chunks": 6, "reach": 1}
    value, _, to_items = rece(hidden, items, targets, **given, **EXACT)
    assert value.isnan()
    assert to_items is not None
    assert twin.rece(hidden, items, targets, **given)[0].isnan()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("where", "bad"), [("hidden", torch.nan), ("items", torch.inf), ("hidden", -torch.inf)])
def test_no_number_comes_of_no_numbers(where: str, bad: float) -> None:
    hidden, items, targets, projections = case(20, 41, 16, 2, 6)
    (hidden if where == "hidden" else items)[targets[0] if where == "items" else 2] = bad
    value, _, _ = rece(hidden, items, targets, projections=projections, n_chunks=6, reach=1, **EXACT)
    assert value.isnan()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dense", [False, True])
def test_an_item_that_half_precision_cannot_hold(dense: bool) -> None:
    """And that no position wants: -inf is the one score that a sum of exponentials does not show."""
    hidden, items, targets, projections = case(20, 41, 16, 2, 6)
    items[40, 3] = -1e5
    given: dict[str, Any] = {"projections": projections, "n_chunks": 6, "reach": 6}
    value, _, _ = rece(hidden.abs(), items, targets % 40, **given, dense=dense)
    assert value.isnan()


def test_no_positions() -> None:
    hidden, items, targets, projections = case(0, 9, 16)
    value, to_hidden, to_items = rece(hidden, items, targets, projections=projections, n_chunks=3, reach=1)
    assert value == 0
    assert to_hidden is not None
    assert to_hidden.shape == (0, 16)
    assert to_items is not None
    assert torch.equal(to_items, torch.zeros(9, 16, device=DEVICE))


def test_laws() -> None:
    hidden, items, targets, projections = case(5, 9, 16)
    given: dict[str, Any] = {"projections": projections, "n_chunks": 3, "reach": 1}
    for change, law in (
        ({"n_chunks": 0}, r"n_chunks: got 0; expected 1 to 16383\."),
        ({"reach": -1}, r"reach: got -1"),
        ({"projections": projections[:, :, :8]}, r"projections: got \(1, 7, 8\)"),
        ({"projections": projections[:0]}, r"projections: got 0 rounds"),
        ({"count": targets}, r"count: got \(5,\)"),
    ):
        with pytest.raises(ValueError, match=law):
            rece(hidden, items, targets, **{**given, **change})
    with pytest.raises(ValueError, match=r"targets_N: got \(4,\); expected \(5,\)\."):
        rece(hidden, items, targets[:4], **given)
    with pytest.raises(ValueError, match=r"weights_N: got \(4,\)"):
        rece(hidden, items, targets, hidden[:4, 0], **given)
    with pytest.raises(ValueError, match=r"items_VD: got \(9, 8\)"):
        rece(hidden, items[:, :8], targets, **given)


@pytest.mark.usefixtures("small_tiles")
def test_registration() -> None:
    hidden, items, targets, projections = case(9, 20, 16, 2)
    weights, count = hidden[:, 0].abs(), torch.tensor(7, device=DEVICE)
    tables = hash_chunks(hidden, items, projections, 3, count, **EXACT)
    tests = ("test_schema", "test_faketensor")
    for gradients in (True, False):
        rest = (3, 1, count, torch.float32, not gradients, gradients)
        torch.library.opcheck(module._rece, (hidden, items, targets, weights, projections, *rest), test_utils=tests)
        given = (hidden, items, targets, None, tables.order, tables.chunk, *rest)
        torch.library.opcheck(module._rece_from_tables, given, test_utils=tests)
