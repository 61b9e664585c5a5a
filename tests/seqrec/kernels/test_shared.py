"""Losses with candidates shared by groups, against their twins in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels import shared, shared_plan
from seqrec.kernels.twins import shared as twin

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16]  # the interpreter cannot multiply bf16
if DEVICE == "cuda":
    DTYPES += [torch.bfloat16]

# The interpreter takes the logarithm of 0, and the difference of infinities, as numpy does: with a warning.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel is to fill holds NaN before, or absurd integers."""

    def poisoned(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor: Tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else 2**31 - 1)

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE)


def draws(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def problem(N: int, V: int, D: int, G: int, K: int, scale: float = 0.3) -> dict[str, Tensor]:
    return {
        "hidden_ND": normal(N, D),
        "items_VD": normal(V, D, seed=1, scale=scale),
        "targets_N": draws(V, N),
        "ids": draws(V, G, K, seed=1),
    }


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: one.double() if isinstance(one, Tensor) and one.is_floating_point() else one
        for name, one in arguments.items()
    }


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


def agree(name: str, dtype: torch.dtype = torch.float32, bound: float = 2e-6, **arguments: Any) -> None:
    """Value and both gradients are the twin's."""
    found = getattr(shared, name)(**arguments, dtype=dtype)
    wanted = getattr(twin, name)(**doubled(arguments))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        assert relative(one, other) <= bound, f"{name}: {relative(one, other)}"


def log_q_of(V: int) -> Tensor:
    return normal(V, seed=5, scale=2).log_softmax(0)


OFFSETS = [0, 5, 5, 70, 133, 150]  # one group is empty, one a whole tile and one position


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("correction", ["none", "log_count", "log_q"])
def test_softmax(ragged: bool, correction: str) -> None:
    options: dict[str, Any] = {"correction": correction, "offsets": torch.tensor(OFFSETS, device=DEVICE)}
    if not ragged:
        options["offsets"] = None
    # Few items: many candidates are their position's target.
    agree("shared_softmax", **problem(150, 7, 16, 5, 19), **options, log_q=log_q_of(7))
    arguments = problem(150, 301, 24, 5, 70) | {"weights_N": draws(3, 150) / 100}
    agree("shared_softmax", **arguments, **options, log_q=log_q_of(301))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    "family", [{}, {"beta": 0.3}, {"plus": True, "mean": False}, {"mean": False}], ids=["bce", "gbce", "bce+", "sum"]
)
def test_binary(ragged: bool, family: dict[str, Any]) -> None:
    arguments: dict[str, Any] = problem(150, 41, 24, 5, 70, scale=2)
    if ragged:
        arguments |= {"offsets": torch.tensor(OFFSETS, device=DEVICE), "weights_N": draws(3, 150) / 100}
    agree("shared_binary", **arguments, **family)


@pytest.mark.parametrize("name", ["shared_softmax", "shared_binary"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_alone(name: str, dtype: torch.dtype) -> None:
    arguments = problem(100, 41, 24, 5, 33)
    run = getattr(shared, name)
    value, *nothing = run(**arguments, dtype=dtype, gradients=False)
    assert nothing == [None, None]
    torch.testing.assert_close(value, run(**arguments, dtype=dtype)[0])


@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 1), (1, 3, 40, 4, 1), (3, 17, 16, 8, 33), (200, 50, 16, 1, 40)])
def test_sizes(shape: tuple[int, int, int, int, int]) -> None:
    """One position, one candidate, more groups than positions, one group for all; ids and targets of 32 bits."""
    arguments = problem(*shape)
    agree("shared_softmax", **arguments, correction="log_count")
    small = {name: one if one.is_floating_point() else one.int() for name, one in arguments.items()}
    wanted, found = (shared.shared_softmax(**one, dtype=torch.float32) for one in (arguments, small))
    torch.testing.assert_close(found, wanted)
    ends = torch.tensor([0] + [shape[0]] * shape[3], device=DEVICE, dtype=torch.int32)
    agree("shared_binary", **arguments, offsets=ends)


def test_ragged_sizes() -> None:
    """Every position is met exactly once, however the sizes fall on tiles; and as in a run of its group alone."""
    generator = torch.Generator().manual_seed(3)
    for most in (3, 40, 200):
        lengths = torch.randint(most + 1, (9,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE)
        agree("shared_softmax", **problem(int(lengths.sum()), 60, 16, 9, 20), offsets=offsets)


def test_stretches_of_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long groups are cut, by `backward` too; a table that is copied gives what one read in place gives."""
    monkeypatch.setattr(shared_plan, "LEAST_STRETCH", 32)
    N, V, D, G, K = 290, 90, 16, 2, 40
    arguments = problem(N, V, D, G, K)
    offsets = torch.tensor([0, 201, 290], device=DEVICE)
    for at_least in (0, 1e9):
        monkeypatch.setattr(shared_plan, "COPY_FROM", at_least)
        cut = shared_plan.plan(N, V, D, G, K, False, torch.float32, torch.device(DEVICE))
        assert cut.stretches == 10
        assert cut.copied == (at_least == 0)
        agree("shared_softmax", **arguments, offsets=offsets)
        agree("shared_softmax", **arguments)
        agree("shared_softmax", **arguments, dtype=torch.float16, bound=2e-3)


def test_no_group_counts_for_nothing() -> None:
    arguments = problem(50, 30, 16, 2, 20)
    offsets = torch.tensor([4, 20, 33], device=DEVICE)
    agree("shared_softmax", **arguments, offsets=offsets)
    to_hidden = shared.shared_softmax(**arguments, offsets=offsets)[1]
    assert to_hidden is not None
    assert not to_hidden[:4].any()
    assert not to_hidden[33:].any()


def test_inputs_of_any_layout_and_dtype() -> None:
    arguments = problem(70, 30, 24, 3, 20)
    wanted = shared.shared_softmax(**arguments, dtype=torch.float32)
    strided = {
        name: one.repeat_interleave(2, -1)[..., ::2] if name == "targets_N" else one.mT.contiguous().mT
        for name, one in arguments.items()
        if name != "targets_N"
    }
    strided["targets_N"] = arguments["targets_N"].repeat_interleave(2)[::2]
    torch.testing.assert_close(shared.shared_softmax(**strided, dtype=torch.float32), wanted)
    torch.testing.assert_close(shared.shared_softmax(**doubled(arguments), dtype=torch.float32), wanted)
    halves = {name: one.half() if one.is_floating_point() else one for name, one in arguments.items()}
    agree("shared_softmax", **halves)


def test_16_bits_keep_small_shares() -> None:
    """A share of 1e-6 is fp16's subnormal: without the shift of the exponent its digits, or all of it, are gone."""
    N, V, D, K = 40, 60, 16, 50
    hidden, items = torch.zeros(N, D), torch.zeros(V, D)
    hidden[:, 0], hidden[:, 1:] = 4.0, normal(N, D - 1, scale=0.1).cpu()
    items[:, 0], items[:, 1:] = -3.5, normal(V, D - 1, seed=1, scale=0.1).cpu()
    items[0, 0] = 0.0  # e^14 times as likely as any other
    targets, ids = torch.full((N,), 1), torch.arange(2, 2 + K)[None]
    ids[0, 7] = 0
    arguments = {
        "hidden_ND": hidden.to(DEVICE), "items_VD": items.to(DEVICE), "targets_N": targets.to(DEVICE),
        "ids": ids.to(DEVICE),
    }  # fmt: skip
    for name in ("shared_softmax", "shared_binary"):
        found = getattr(shared, name)(**arguments)[2]
        wanted = getattr(twin, name)(**doubled(arguments))[2]
        assert relative(found[2:], wanted[2:]) < 2e-3
        assert wanted[2:].abs().max() < 1e-5


def test_spare_positions_change_nothing() -> None:
    """Of weight 0; and a batch of nothing else is 0."""
    arguments = problem(64, 30, 16, 2, 20)
    weights = torch.full((64,), 1 / 40, device=DEVICE)
    weights[40:] = 0
    for name in ("shared_softmax", "shared_binary"):
        run = getattr(shared, name)
        found = run(**arguments, weights_N=weights, dtype=torch.float32)
        few = {key: one if key in ("ids", "items_VD") else one[:40] for key, one in arguments.items()}
        wanted = run(**few, dtype=torch.float32)
        torch.testing.assert_close((found[0], found[1][:40], found[2]), wanted)
        assert not found[1][40:].any()
        for one in run(**arguments, weights_N=weights * 0):
            assert not one.any()


def test_every_candidate_rejected() -> None:
    arguments = problem(20, 5, 16, 1, 9)
    arguments["ids"].fill_(3)
    arguments["targets_N"].fill_(3)
    for correction in ("none", "log_count", "log_q"):
        found = shared.shared_softmax(**arguments, correction=correction, log_q=log_q_of(5))
        assert [float(one.abs().sum()) for one in found if one is not None] == [0, 0, 0]


def test_empty_batch() -> None:
    arguments = problem(0, 5, 16, 2, 9)
    for offsets in (None, torch.zeros(3, dtype=torch.int64, device=DEVICE)):
        for run in (shared.shared_softmax, shared.shared_binary):
            value, to_hidden, to_items = run(**arguments, offsets=offsets)
            assert to_hidden is not None
            assert to_items is not None
            assert (float(value), to_hidden.shape, to_items.shape) == (0, (0, 16), (5, 16))
            assert not to_items.any()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", ["shared_softmax", "shared_binary"])
def test_what_is_wrong_shows_in_the_value(name: str, gradients: bool) -> None:
    """A target or candidate that is no item, infinities, NaN: the value is NaN, and nothing else is touched."""

    def value(**changed: Tensor) -> Tensor:
        found: Tensor = getattr(shared, name)(**{**arguments, **changed}, gradients=gradients)[0]
        return found

    arguments = problem(70, 30, 16, 2, 20)
    assert torch.isfinite(value())
    for bad in (-1, 30, 2**40):
        for key in ("targets_N", "ids"):
            ids = arguments[key].clone()
            ids.view(-1)[11] = bad
            assert torch.isnan(value(**{key: ids}))
    for bad in (torch.inf, -torch.inf, torch.nan):
        hidden, items = arguments["hidden_ND"].clone(), arguments["items_VD"].clone()
        hidden[9, 3] = bad
        items[int(arguments["ids"][0, 0]), 2] = bad
        assert torch.isnan(value(hidden_ND=hidden))
        assert torch.isnan(value(items_VD=items))


def test_offsets_of_nonsense_stay_inside() -> None:
    """No address far outside is formed: there even the interpreter would crash."""
    arguments = problem(70, 30, 16, 3, 20)
    for offsets in ([0, 50, 20, 70], [-9, 30, 60, 2**40], [70, 70, 0, 0], [65, 66, 67, 900]):
        shared.shared_softmax(**arguments, offsets=torch.tensor(offsets, device=DEVICE))


def test_value_and_states_repeat_bit_for_bit() -> None:
    arguments = problem(150, 40, 16, 3, 50)
    first, second = (shared.shared_softmax(**arguments) for _ in range(2))
    assert first[1] is not None
    assert second[1] is not None
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_registered() -> None:
    a = problem(40, 30, 16, 2, 20)
    four = (a["hidden_ND"], a["items_VD"], a["targets_N"])
    offsets = torch.tensor([0, 20, 40], device=DEVICE)
    for gradients in (False, True):
        rest = (torch.float32, gradients)
        torch.library.opcheck(
            torch.ops.seqrec.shared_softmax, (*four, None, a["ids"], None, log_q_of(30), "log_q", *rest),
            test_utils=("test_schema", "test_faketensor"),
        )  # fmt: skip
        torch.library.opcheck(
            torch.ops.seqrec.shared_binary, (*four, None, a["ids"], offsets, 1.0, True, False, 1e-6, *rest),
            test_utils=("test_schema", "test_faketensor"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("correction", "log"),
        ("log_q", torch.zeros(3)),
        ("dtype", torch.float64),
        ("ids", torch.zeros(4, dtype=torch.int64)),
        ("ids", torch.zeros(2, 3)),
        ("offsets", torch.zeros(9, dtype=torch.int64)),
        ("weights_N", torch.zeros(3)),
        ("targets_N", torch.zeros(3, dtype=torch.int64)),
        ("items_VD", torch.zeros(3, 5)),
        ("hidden_ND", torch.zeros(7, 999)),
    ],
)
def test_laws(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: got .*; expected .*\.$"):
        shared.shared_softmax(**{**problem(7, 11, 16, 2, 3), name: value})


def test_tiles_fit_one_another() -> None:
    """`backward` reads whole tiles of what `forward` leaves."""
    for capability in (8, 9):
        for kind in ("forward", "backward", "exact"):
            assert shared_plan.TILES[kind].get(capability) or kind == "exact"
        front, back = (shared_plan.TILES[kind][capability] for kind in ("forward", "backward"))
        for width in (16, 32, 64, 128, 256, 512):
            rows = [next(tile.rows for wide, tile in sorted(one.items()) if wide >= width) for one in (front, back)]
            assert rows[0] % rows[1] == 0
