"""The vectors that score highest, and mixtures, against their twins. Without a GPU in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels import top
from seqrec.kernels.sce import mixed_centres, top_items
from seqrec.kernels.twins import sce as twin

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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


def seeded(value: int = 1) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(value)


# ---------------------------------------------------------------------------------------------------------- buckets


def assert_top(centres: Tensor, vectors: Tensor, k: int, count: Tensor | None = None) -> None:
    """As many as there are, no vector twice, and no scores but the largest."""
    found = top_items(centres, vectors, k, count)
    assert found.dtype == torch.int32
    wanted = twin.top_items(centres.double(), vectors.double(), k, count).long()
    scores = torch.cat([centres.double() @ vectors.double().T, centres.new_full((len(centres), 1), -torch.inf)], 1)
    assert torch.equal((found >= 0).sum(1), (wanted >= 0).sum(1))
    for chosen in found.long():
        real = chosen[chosen >= 0]
        assert len(real.unique()) == len(real)
        assert int(real.max()) < (len(vectors) if count is None else int(count))
    mine, theirs = (scores.gather(1, one % scores.shape[1]).sort(1).values for one in (found.long(), wanted))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6 * float(scores[:, :-1].abs().max()))


@pytest.mark.parametrize(
    ("B", "M", "D", "k", "count"),
    [(3, 700, 24, 20, None), (2, 130, 64, 130, None), (2, 40, 16, 50, None), (1, 1, 1, 1, None), (66, 70, 16, 3, 33),
     (2, 300, 24, 50, 30), (2, 900, 40, 1, 899)],
)  # fmt: skip
def test_top(B: int, M: int, D: int, k: int, count: int | None) -> None:
    assert_top(normal(B, D), normal(M, D, seed=1), k, None if count is None else integer(count))


@pytest.mark.parametrize("D", [16, 64])
def test_top_of_vectors_that_crowd_into_few_groups(D: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More good vectors than a buffer holds, in groups whose own best say little: cut to the best, again and again."""
    monkeypatch.setattr(top, "_GROUPS_PER_K", 1)
    monkeypatch.setattr(top, "_WAVES", {512: 1})
    vectors = normal(4000, D)
    vectors[torch.arange(4000, device=DEVICE) % 64 < 9] += 10 * normal(D, seed=1)
    assert_top(normal(D, seed=1)[None] + 0.1 * normal(2, D, seed=2), vectors, 20)


@pytest.mark.parametrize("distinct", [1, 3, 200])
def test_top_of_equal_scores(distinct: int) -> None:
    vectors = normal(distinct, 16).repeat(-(-1500 // distinct), 1)[:1500]
    assert_top(normal(2, 16, seed=1), vectors, 60)


def test_top_is_repeatable_and_indifferent_to_the_scale_of_a_centre() -> None:
    centres, vectors = normal(2, 16), normal(500, 16, seed=1).half()
    found = top_items(centres, vectors, 30)
    assert torch.equal(found, top_items(centres, vectors, 30))
    for scale in (2.0**30, 2.0**-30):
        assert torch.equal(found, top_items(centres * scale, vectors, 30))


@NOT_NUMBERS
def test_top_never_holds_what_is_not_a_number() -> None:
    vectors = normal(300, 16)
    vectors[::3] = torch.nan
    found = top_items(normal(2, 16, seed=1), vectors, 250)
    assert int((found >= 0).sum()) == 2 * 200
    assert bool((found[found >= 0] % 3 > 0).all())
    assert bool((top_items(normal(2, 16) * torch.nan, vectors, 5) == -1).all())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [256, 1024])
def test_top_of_a_catalog(k: int, dtype: torch.dtype) -> None:
    assert_top(normal(70, 64).to(dtype).float(), normal(200_001, 64, seed=1).to(dtype), k)


@pytest.mark.gpu
def test_table_of_more_than_2_to_the_31_numbers() -> None:
    items = torch.zeros(34_000_000, 64, dtype=torch.float16, device=DEVICE)
    items[-300:] = normal(300, 64).half()
    found = top_items(normal(64, 64, seed=1), items, 20)
    assert int(found.min()) >= len(items) - 300


# --------------------------------------------------------------------------------------------------------- mixtures


def test_mixture_is_one_of_the_rows_with_independent_gaussian_numbers() -> None:
    N, B, D = 40, 130, 48
    omega = mixed_centres(torch.eye(N, D, device=DEVICE), B, generator=seeded()) * D**0.25
    assert torch.equal(omega[:, N:], torch.zeros_like(omega[:, N:]))
    omega = omega[:, :N]
    x = normal(N, D)
    bound = 1e-5 if DEVICE == "cpu" else 2e-3
    assert error(mixed_centres(x, B, generator=seeded()), D**-0.25 * omega @ x) < bound
    assert error(mixed_centres(x, B, generator=seeded(2)), D**-0.25 * omega @ x) > 0.5
    n = omega.numel()
    assert abs(float(omega.mean())) < 4 * n**-0.5
    assert abs(float(omega.square().mean()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float(omega.pow(4).mean()) - 3) < 4 * (96 / n) ** 0.5
    for one, size in ((omega @ omega.T / N, N), (omega.T @ omega / B, B)):
        off = one - one.diag().diag()
        assert float(off.abs().max()) < 6 * size**-0.5


def test_mixture_of_the_real_rows() -> None:
    x = normal(100, 24)
    wanted = mixed_centres(x[:70], 9, generator=seeded())
    x[70:] = torch.nan
    assert error(mixed_centres(x, 9, integer(70), seeded()), wanted) < 1e-6
    assert mixed_centres(x, 9, integer(0), seeded()).abs().sum() == 0
    assert mixed_centres(x[:0], 9).shape == (9, 24)
    with pytest.raises(ValueError, match="n_buckets: got 0"):
        mixed_centres(x, 0)


def test_mixture_and_twin_have_one_distribution() -> None:
    x = normal(3, 16) * torch.tensor([[1.0], [5.0], [0.2]], device=DEVICE)
    wanted = x.T @ x / 4
    for draw in (mixed_centres, twin.mixed_centres):
        centres = draw(x, 4000, None, seeded())
        assert error(centres.T @ centres / 4000, wanted) < 0.1
