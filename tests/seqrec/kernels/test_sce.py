"""SCE's kernels against their twin: values and both gradients. On a machine without a GPU in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels.sce import mixed_centres, sce, top_items
from seqrec.kernels.twins import sce as twin

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F32 = torch.float32
NOT_NUMBERS = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter's, where a test hands in what is not finite."""


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel is to fill holds NaN before, or the number 5."""
    for owner, name in ((Tensor, "new_empty"), (torch, "empty_like"), (torch, "empty")):
        plain = getattr(owner, name)

        def poisoned(*args: Any, plain: Any = plain, **kwargs: Any) -> Tensor:
            made: Tensor = plain(*args, **kwargs)
            if made.device.type == "meta" or type(made) is not Tensor:
                return made
            return made.fill_(torch.nan if made.is_floating_point() else 5)

        monkeypatch.setattr(owner, name, poisoned)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def integer(value: int) -> Tensor:
    return torch.tensor(value, device=DEVICE)


def error(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-12))


def batch(N: int, V: int, D: int, n_buckets: int, scale: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, items, targets, centres)."""
    targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    return scale * normal(N, D), scale * normal(V, D, seed=1), targets, normal(n_buckets, D, seed=2)


def seeded(value: int = 1) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(value)


@pytest.mark.parametrize(
    ("N", "V", "D", "n_buckets", "size_x", "size_y", "count"),
    [(70, 301, 24, 4, 16, 20, None), (90, 150, 64, 3, 70, 70, None), (70, 131, 16, 3, 20, 33, 50),
     (30, 101, 16, 3, 50, 100, 7), (5, 9, 16, 3, 5, 9, None), (1, 5, 16, 1, 1, 1, None), (33, 17, 1, 2, 3, 5, 32)],
)  # fmt: skip
def test_loss(N: int, V: int, D: int, n_buckets: int, size_x: int, size_y: int, count: int | None) -> None:
    hidden, items, targets, centres = batch(N, V, D, n_buckets)
    options: dict[str, Any] = {"bucket_size_x": size_x, "bucket_size_y": size_y}
    options["count"] = None if count is None else integer(count)
    found = sce(hidden, items, targets, centres=centres, dtype=F32, **options)
    wanted = twin.sce(hidden.double(), items.double(), targets, centres=centres.double(), **options)
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert one.dtype == F32
        assert error(one, other) < 2e-6
    value, to_hidden, to_items, share = sce(
        hidden, items, targets, centres=centres, dtype=F32, gradients=False, **options
    )
    assert to_hidden is to_items is None
    assert torch.equal(value, found[0])
    assert torch.equal(share, found[3])


@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_loss_in_float16(scale: float) -> None:
    """Against the twin on the same rounded operands; the rest is the rounding of probabilities."""
    hidden, items, targets, centres = batch(60, 200, 32, 3, scale)
    options = {"bucket_size_x": 30, "bucket_size_y": 40}
    found = sce(hidden, items, targets, centres=centres, **options)
    low = [one.half().double() for one in (hidden, items, centres)]
    wanted = twin.sce(low[0], low[1], targets, centres=low[2], **options)
    assert error(found[0], wanted[0]) < 1e-6
    assert error(found[1], wanted[1]) < 5e-4
    assert error(found[2], wanted[2]) < 5e-4


def test_tiny_probabilities_survive_float16() -> None:
    """A positive that is far ahead leaves gradients of 1e-6, which halves could not hold."""
    _, items, targets, centres = batch(20, 64, 32, 2)
    items = items / items.norm(dim=1, keepdim=True)
    hidden = 28 * items[targets]
    options = {"bucket_size_x": 20, "bucket_size_y": 40}
    found = sce(hidden, items, targets, centres=centres, **options)
    low = [one.half().double() for one in (hidden, items, centres)]
    wanted = twin.sce(low[0], low[1], targets, centres=low[2], **options)
    assert float(wanted[0]) < 1e-4
    assert error(found[1], wanted[1]) < 5e-4
    assert error(found[2], wanted[2]) < 5e-4


def test_first_of_equal_buckets_wins() -> None:
    """The same bucket twice: each position counts once, and passes its gradient once."""
    hidden, items, targets, centres = batch(40, 90, 16, 1)
    options = {"bucket_size_x": 12, "bucket_size_y": 20, "dtype": F32}
    once = sce(hidden, items, targets, centres=centres, **options)
    twice = sce(hidden, items, targets, centres=centres.repeat(2, 1), **options)
    for one, other in zip(once, twice, strict=True):
        assert error(one, other) < 1e-7


def test_positions_whose_loss_is_zero_are_covered() -> None:
    """Their target is the only item of the bucket."""
    hidden, items, targets, centres = batch(8, 6, 16, 1)
    chosen = int(top_items(centres, items, 1))
    value, to_hidden, to_items, share = sce(
        hidden, items, torch.full_like(targets, chosen), centres=centres, bucket_size_x=8, bucket_size_y=1, dtype=F32
    )
    assert float(value) == 0
    assert float(share) == 1
    assert to_hidden is not None
    assert to_items is not None
    assert not to_hidden.any()
    assert not to_items.any()


def test_spare_rows_change_nothing() -> None:
    hidden, items, targets, centres = batch(60, 131, 16, 3)
    options: dict[str, Any] = {"bucket_size_x": 10, "bucket_size_y": 20, "dtype": F32, "centres": centres}
    wanted = sce(hidden[:37], items, targets[:37], **options)
    spare = hidden.clone()
    spare[37:] = 100 * centres[0]  # would fill the first bucket
    found = sce(spare, items, targets, count=integer(37), **options)
    assert found[1] is not None
    assert not found[1][37:].any()
    for one, other in zip((found[0], found[1][:37], found[2], found[3]), wanted, strict=True):
        assert error(one, other) < 1e-6


def test_layouts_and_dtypes_of_inputs() -> None:
    hidden, items, targets, centres = batch(30, 70, 16, 2)
    options = {"bucket_size_x": 10, "bucket_size_y": 20, "dtype": F32}
    wanted = sce(hidden, items, targets, centres=centres, **options)
    turned = (one.T.contiguous().T for one in (hidden, items))
    found = sce(*turned, targets.int(), centres=centres.T.contiguous().T, **options)
    for one, other in zip(found, wanted, strict=True):
        assert error(one, other) < 1e-7
    low = sce(hidden.half(), items.half(), targets, centres=centres, **options)
    assert low[1] is not None
    assert low[1].dtype == F32
    assert error(low[0], wanted[0]) < 1e-3


@pytest.mark.parametrize("target", [-1, 70, 2**40])
def test_target_outside_the_catalog(target: int) -> None:
    hidden, items, targets, centres = batch(30, 70, 16, 2)
    targets[4] = target
    value, to_hidden, _, _ = sce(hidden, items, targets, centres=centres, bucket_size_x=30, bucket_size_y=20, dtype=F32)
    assert value.isnan()
    assert to_hidden is not None
    value, *_ = sce(
        hidden, items, targets, centres=centres, bucket_size_x=30, bucket_size_y=20, dtype=F32, count=integer(4)
    )
    assert value.isfinite()


@NOT_NUMBERS
@pytest.mark.parametrize("number", [torch.inf, torch.nan, 1e6])
@pytest.mark.parametrize("where", [0, 1])
def test_numbers_that_are_none(number: float, where: int) -> None:
    """1e6 is one, but not in float16."""
    hidden, items, targets, centres = batch(30, 70, 16, 2)
    (hidden, items)[where][3, 5] = number
    value, *_ = sce(hidden, items, targets, centres=centres, bucket_size_x=10, bucket_size_y=20)
    assert value.isnan()


@NOT_NUMBERS
def test_centres_that_are_not_numbers() -> None:
    hidden, items, targets, centres = batch(30, 70, 16, 2)
    value, *_ = sce(hidden, items, targets, centres=centres * torch.nan, bucket_size_x=10, bucket_size_y=20)
    assert value.isnan()


@pytest.mark.parametrize("N", [0, 5])
def test_no_real_rows(N: int) -> None:
    hidden, items, targets, centres = batch(5, 20, 16, 2)
    count = integer(0) if N else None
    value, to_hidden, to_items, share = sce(
        hidden[:N], items, targets[:N], centres=centres, bucket_size_x=3, bucket_size_y=4, count=count
    )
    assert float(value) == float(share) == 0
    assert to_hidden is not None
    assert to_items is not None
    assert to_hidden.shape == (N, 16)
    assert not to_hidden.any()
    assert not to_items.any()


def test_arguments() -> None:
    hidden, items, targets, centres = batch(5, 20, 16, 2)
    good = {"centres": centres, "bucket_size_x": 3, "bucket_size_y": 4}
    for wrong, text in [
        ({"bucket_size_y": 21}, "bucket_size_y: got 21; expected 1 to the catalog"),
        ({"bucket_size_x": 0}, "bucket_size_x: got 0"),
        ({"centres": centres[:, :8]}, "centres: got shape"),
        ({"dtype": torch.float64}, "dtype: got torch.float64"),
    ]:
        with pytest.raises(ValueError, match=text):
            sce(hidden, items, targets, **{**good, **wrong})
    many = torch.zeros(1_000_001, 1, device=DEVICE)
    for wrong, text in [
        ({"bucket_size_x": 1_000_001}, "bucket_size_x: got 1000001; expected at most 1000000"),
        ({"bucket_size_y": 1_000_001}, "bucket_size_y: got 1000001; expected at most 1000000"),
        ({"centres": many[:65_536]}, "centres: got 65536 rows; expected at most 65535"),
    ]:
        with pytest.raises(ValueError, match=text):
            sce(hidden[:, :1], many, targets, **{**good, "centres": centres[:, :1], **wrong})
    with pytest.raises(ValueError, match="k: got 1000001; expected at most 1000000"):
        top_items(centres[:, :1], many, 1_000_001)
    with pytest.raises(ValueError, match="targets_N: got shape"):
        sce(hidden, items, targets[1:], **good)
    with pytest.raises(ValueError, match="k: got 0"):
        top_items(centres, items, 0)


def test_operator() -> None:
    hidden, items, targets, centres = batch(20, 70, 16, 2)
    for gradients in (True, False):
        torch.library.opcheck(
            torch.ops.seqrec.sce.default,
            (hidden, items, targets, centres, integer(15), 5, 9, F32, gradients),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "scale", "bound"),
    [
        (torch.float16, 0.22, 5e-4),
        (torch.float16, 1.22, 2e-3),
        (torch.bfloat16, 0.22, 4e-3),
        (torch.bfloat16, 1.22, 1.5e-2),
    ],
)
def test_real_shapes(dtype: torch.dtype, scale: float, bound: float) -> None:
    """Against float64 on the rounded operands, with the kernel's own buckets: near ties must not count as errors."""
    hidden, items, targets, centres = batch(2048, 20001, 64, 40, scale)
    options: dict[str, Any] = {"bucket_size_x": 100, "bucket_size_y": 256, "dtype": dtype}
    found = sce(hidden, items, targets, centres=centres, **options)
    low = [one.to(dtype) for one in (hidden, items)]
    buckets = top_items(centres, low[0], 100), top_items(centres, low[1], 256)
    leaves = [one.double().requires_grad_() for one in low]
    value, covered = twin.scalable_cross_entropy(leaves[0], leaves[1], targets, *buckets)
    wanted = torch.autograd.grad(value, leaves)
    assert error(found[0], value.detach()) < 1e-5
    assert error(found[1], wanted[0]) < bound
    assert error(found[2], wanted[1]) < bound
    assert float(found[3]) == pytest.approx(float(covered.double().mean()))


@pytest.mark.gpu
def test_captured_step_follows_its_inputs() -> None:
    """Centres, draws, count and states change between replays."""
    hidden, items, targets, _ = batch(1000, 5000, 64, 1)
    count, generator = integer(1000), seeded()
    options: dict[str, Any] = {"bucket_size_x": 50, "bucket_size_y": 64, "count": count}

    def step() -> tuple[Tensor, tuple[Tensor | None, ...]]:
        centres = mixed_centres(hidden, 32, count, generator)
        return centres, sce(hidden, items, targets, centres=centres, **options)

    step()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        centres, found = step()
    seen = []
    for number in (1000, 613, 7):
        hidden.normal_()
        count.fill_(number)
        graph.replay()
        wanted = sce(hidden, items, targets, centres=centres, **options)
        for one, other in zip(found, wanted, strict=True):
            assert error(one, other) < 1e-6
        assert found[1] is not None
        assert not found[1][number:].any()
        seen.append(centres.clone())
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.gpu
def test_repeats_to_the_last_bit_but_for_items() -> None:
    hidden, items, targets, centres = batch(5000, 30000, 64, 70)
    options: dict[str, Any] = {"bucket_size_x": 70, "bucket_size_y": 256}
    first = sce(hidden, items, targets, centres=centres, **options)
    for _ in range(5):
        again = sce(hidden, items, targets, centres=centres, **options)
        for place in (0, 1, 3):
            assert torch.equal(again[place], first[place])
        assert error(again[2], first[2]) < 1e-6
