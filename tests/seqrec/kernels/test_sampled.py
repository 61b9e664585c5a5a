"""Sampled losses: kernels against the eager twin in float64. Without a GPU in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.kernels import sampled, sampled_launch
from seqrec.kernels.draws import alias_table
from seqrec.kernels.twins import sampled as twin
from seqrec.losses.bce import BcePlus, Gbce
from seqrec.losses.ce_minus import CeMinus

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N, V, D, K = 7, 29, 24, 19
EXACT = {"dtype": torch.float32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ce-": ("sampled_softmax", {}),
    "cce-": ("sampled_softmax", {"correction": "log_count"}),
    "log_q": ("sampled_softmax", {"correction": "log_q"}),
    "bce": ("sampled_binary", {}),
    "gbce": ("sampled_binary", {"beta": 0.3}),
    "bce+": ("sampled_binary", {"mean": False, "plus": True}),
}


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel is to fill holds NaN before, or a number far outside of every table."""

    def poisoned(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = plain(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(torch.nan)
            return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)

        return made

    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def integers(most: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def seeded(value: int = 7) -> Tensor:
    return torch.tensor([value], device=DEVICE)


def inputs(n: int = N, v: int = V, d: int = D) -> tuple[Tensor, Tensor, Tensor]:
    return normal(n, d), normal(v, d, seed=1), integers(v, n, seed=2)


def close(found: sampled.Result, wanted: sampled.Result, bound: float = 2e-6) -> None:
    """Relative to the whole tensor."""
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        assert torch.isfinite(one).all()
        error = (one.double() - other).norm()
        assert error <= bound * other.norm() + 1e-9, f"{error} of {other.norm()}"


def both(name: str, given: tuple[Tensor, ...], options: dict[str, Any], bound: float = 2e-6, **more: Any) -> None:
    found = getattr(sampled, name)(*given, **options, **{**EXACT, **more})
    hidden, items, *rest = given
    wanted = getattr(twin, name)(hidden.double(), items.double(), *rest, **options)
    close(found, wanted, bound)


def options_of(family: str, source: str, n: int = N, v: int = V, k: int = K) -> tuple[str, dict[str, Any]]:
    name, options = FAMILIES[family]
    counts = integers(20, v, seed=3) + 1
    if family == "log_q":
        options = {**options, "log_q": (counts / counts.sum()).log()}
    if source == "given":
        return name, {**options, "ids": integers(v, n, k, seed=4)}
    if source == "int32":
        return name, {**options, "ids": integers(v, n, k, seed=4).int()}
    popularity = alias_table(counts).to(DEVICE) if source == "popular" else None
    return name, {**options, "seed": seeded(), "n_negatives": k, "popularity": popularity}


@pytest.mark.parametrize(
    ("source", "scatter"), [("given", "lists"), ("uniform", "lists"), ("uniform", "atomics"), ("popular", "atomics")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_gradients(family: str, source: str, scatter: str) -> None:
    if family == "cce-" and source == "popular":
        source = "int32"  # popularity is of interest beside log_q
    name, options = options_of(family, source)
    weights = normal(N, seed=5).abs()
    weights[::4] = 0
    both(name, (*inputs(), weights), options, scatter=scatter)


@pytest.mark.parametrize(("n", "v", "d", "k"), [(1, 1, 1, 1), (1, 5, 64, 1), (3, 200, 16, 33), (9, 7, 130, 3)])
@pytest.mark.parametrize("family", ["cce-", "gbce"])
def test_shapes(family: str, n: int, v: int, d: int, k: int) -> None:
    """By the rule that picks how the items' gradient is summed; several portions of positions."""
    name, options = options_of(family, "uniform", n, v, k)
    both(name, inputs(n, v, d), options, 4e-6)


@pytest.mark.parametrize("family", ["log_q", "bce+"])
def test_portions_and_lists_that_several_programs_share(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Portions of at most 3 positions; lists longer than 2^3 pairs, one item in half of all."""
    monkeypatch.setattr(sampled_launch, "list_bytes", lambda *_: 3 * 2 * 41)
    monkeypatch.setattr(sampled_launch, "SPAN_BITS", 3)
    name, options = options_of(family, "popular", k=41)
    both(name, inputs(), options, scatter="lists")
    name, options = options_of(family, "given", k=41)
    ids = options["ids"]
    options["ids"] = torch.where(integers(2, N, 41, seed=6) == 0, 28, ids)
    both(name, inputs(), options, scatter="lists")
    name, options = options_of(family, "uniform", v=3, k=41)
    options.pop("log_q", None)
    both(name, inputs(v=3), options, scatter="lists")


@pytest.mark.parametrize("scatter", ["lists", "atomics"])
def test_rejects_and_rows_without_a_candidate(scatter: str) -> None:
    hidden, items, targets = inputs()
    ids = integers(V, N, K)
    ids[:3] = targets[:3, None]
    ids[3:5, ::2] = targets[3:5, None]
    for correction in ("none", "log_count"):
        both("sampled_softmax", (hidden, items, targets), {"ids": ids, "correction": correction}, scatter=scatter)
    spare = torch.zeros(N, device=DEVICE)
    spare[:3] = 1
    value, to_hidden, to_items = sampled.sampled_softmax(hidden, items, targets, spare, ids=ids, scatter=scatter)
    assert value == 0
    assert to_hidden is not None
    assert to_items is not None
    assert not to_hidden.any()
    assert not to_items.any()


def test_large_scores() -> None:
    """Far from where exp overflows. A score of size S has in float32 an error of S 2^-24, and so has, relatively, what
    is proportional to its exponential."""
    hidden, items, targets = inputs()
    for name, options in (options_of("cce-", "given"), options_of("gbce", "given"), options_of("bce+", "given")):
        # Hopeless and certain answers, and nearly certain ones, where the loss is far below 1.
        for states in (hidden * 40, items[targets] * 0.9):
            both(name, (states, items, targets), options, float((states @ items.T).abs().max()) * 2**-23)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_operands_of_16_bits(dtype: torch.dtype) -> None:
    """More than two pairs an item, so that operands are rounded. Against the twin of rounded operands."""
    hidden, items, targets = inputs()
    for family in ("cce-", "gbce"):
        name, options = options_of(family, "given")
        found = getattr(sampled, name)(hidden, items, targets, **options, dtype=dtype)
        low = hidden.to(dtype).double(), items.to(dtype).double()
        close(found, getattr(twin, name)(*low, targets, **options))


def test_any_layout_and_dtype() -> None:
    hidden, items, targets = inputs()
    name, options = options_of("cce-", "given")
    wanted = getattr(twin, name)(hidden.double(), items.double(), targets, **options)
    apart = hidden.T.contiguous().T, items.repeat(1, 2)[:, :D], targets.repeat_interleave(2)[::2]
    close(sampled.sampled_softmax(*apart, **{**options, "ids": options["ids"].T.contiguous().T}, **EXACT), wanted)
    close(sampled.sampled_softmax(hidden.double(), items.double(), targets.int(), **options, **EXACT), wanted)


def test_without_gradients_and_without_positions() -> None:
    hidden, items, targets = inputs()
    for family in ("cce-", "bce"):
        name, options = options_of(family, "uniform")
        call = getattr(sampled, name)
        value, *none = call(hidden, items, targets, **options, gradients=False)
        assert none == [None, None]
        assert value == call(hidden, items, targets, **options)[0]
        value, to_hidden, to_items = call(hidden[:0], items, targets[:0], **options)
        assert value == 0
        assert to_hidden.shape == (0, D)
        assert to_items.shape == (V, D)
        assert not to_items.any()


@pytest.mark.parametrize("family", ["cce-", "bce"])
def test_same_seed_same_result(family: str) -> None:
    """Value and states' gradient bit for bit, on every device; another seed draws others."""
    name, options = options_of(family, "uniform")
    first, again = (getattr(sampled, name)(*inputs(), **options, **EXACT) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    other = getattr(sampled, name)(*inputs(), **{**options, "seed": seeded(8)}, **EXACT)
    assert other[0] != first[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
@pytest.mark.parametrize("family", ["cce-", "gbce", "bce+"])
@pytest.mark.parametrize("wrong", ["target", "negative target", "id", "hidden", "item", "infinite"])
def test_what_has_no_value_is_nan(family: str, wrong: str) -> None:
    hidden, items, targets = inputs()
    name, options = options_of(family, "given")
    weights = torch.ones(N, device=DEVICE)
    match wrong:
        case "target":
            targets[3] = V
        case "negative target":
            targets[3] = -1
        case "id":
            options["ids"][5, 2] = 2**40
        case "hidden":
            hidden[4, 0] = torch.nan
        case "item":
            items[targets[2], 1] = torch.nan
        case "infinite":
            hidden[4] = torch.inf
    call = getattr(sampled, name)
    assert call(hidden, items, targets, **options, **EXACT, gradients=False)[0].isnan()
    if wrong in ("target", "negative target", "id"):
        # The gradients' kernels stay inside of the tables.
        for scatter in ("lists", "atomics"):
            assert call(hidden, items, targets, **options, **EXACT, scatter=scatter)[0].isnan()
    if wrong in ("hidden", "infinite"):
        weights[4] = 0
        for one in call(hidden, items, targets, weights, **options, **EXACT):
            assert one.isfinite().all()


def test_the_registered_operators() -> None:
    hidden, items, targets = inputs()
    utilities = ("test_schema", "test_faketensor")
    softmax = (hidden, items, targets, None, None, seeded(), None, None, K, "log_count", torch.float32)
    binary = (hidden, items, targets, None, integers(V, N, K), None, None, K, 0.5, True, False, 1e-6, torch.float32)
    for gradients in (True, False):
        torch.library.opcheck(
            torch.ops.seqrec.sampled_softmax.default, (*softmax, gradients, "auto"), test_utils=utilities
        )
        torch.library.opcheck(
            torch.ops.seqrec.sampled_binary.default, (*binary, gradients, "auto"), test_utils=utilities
        )


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("ids: got None", {}),
    ("ids: got", {"ids": torch.zeros(3, 4, dtype=torch.int64)}),
    ("seed, n_negatives: got", {"ids": torch.zeros(N, 4, dtype=torch.int64), "n_negatives": 4}),
    ("seed: got", {"seed": torch.zeros(2, dtype=torch.int64), "n_negatives": 4}),
    ("n_negatives: got 0", {"seed": torch.zeros(1, dtype=torch.int64), "n_negatives": 0}),
    ("correction: got log", {"seed": torch.zeros(1, dtype=torch.int64), "n_negatives": 4, "correction": "log"}),
    ("dtype: got", {"seed": torch.zeros(1, dtype=torch.int64), "n_negatives": 4, "dtype": torch.int8}),
    ("scatter: got x", {"seed": torch.zeros(1, dtype=torch.int64), "n_negatives": 4, "scatter": "x"}),
    ("weights_N: got", {"ids": torch.zeros(N, 4, dtype=torch.int64), "weights_N": torch.ones(3)}),
]


@pytest.mark.parametrize(("law", "options"), WRONG)
def test_arguments_that_break_a_law(law: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=law):
        sampled.sampled_softmax(*inputs(), **options)


def test_popularity_needs_its_probabilities_for_log_q() -> None:
    table = alias_table(torch.ones(V, dtype=torch.int64)).to(DEVICE)
    with pytest.raises(ValueError, match="log_q: got None"):
        sampled.sampled_softmax(*inputs(), seed=seeded(), n_negatives=3, popularity=table, correction="log_q")


@pytest.mark.parametrize("correction", ["none", "log_count", "log_q"])
def test_the_twin_is_the_project_s_softmax(correction: Any) -> None:
    hidden, items, targets = inputs()
    ids = integers(V, N, K)
    log_q = (integers(9, V, seed=3) + 1.0).div(500).log()
    loss = CeMinus(NegativesRequest(K, "position"), V, correction)
    wanted = loss.value_and_gradients(hidden, items, targets, Negatives(ids, None, log_q))
    close(wanted, twin.sampled_softmax(hidden.double(), items.double(), targets, ids=ids, correction=correction,
                                       log_q=log_q))  # fmt: skip


def test_the_twin_is_the_project_s_binary() -> None:
    hidden, items, targets = inputs()
    ids, doubles = integers(V, N, K), (hidden.double(), items.double())
    gbce = Gbce(V, K, 0.75)
    wanted = gbce.value_and_gradients(hidden, items, targets, Negatives(ids))
    close(wanted, twin.sampled_binary(*doubles, targets, ids=ids, beta=gbce.beta))
    plus = BcePlus(NegativesRequest(K, "position"))
    wanted = plus.value_and_gradients(hidden, items, targets, Negatives(ids))
    close(wanted, twin.sampled_binary(*doubles, targets, ids=ids, mean=False, plus=True))
