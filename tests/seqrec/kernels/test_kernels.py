"""Every kernel against its eager twin: values, gradients, masks. On a machine without a GPU in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqrec.kernels import reference
from seqrec.kernels.adam import adam_rows
from seqrec.kernels.attention import blocks, ragged_attention
from seqrec.kernels.embedding import Sink, embed
from seqrec.kernels.feedforward import relu_dropout
from seqrec.kernels.launch import sum_rows
from seqrec.kernels.norm import Outputs, add_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOW = [torch.float32, torch.bfloat16]
DOT = [torch.float32, torch.bfloat16 if DEVICE == "cuda" else torch.float16]  # the interpreter cannot multiply bf16
P = 0.3


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel is to fill holds NaN before."""
    for name in ("new_empty",):
        plain = getattr(Tensor, name)

        def poisoned(self: Tensor, *args: Any, plain: Any = plain, **kwargs: Any) -> Tensor:
            made: Tensor = plain(self, *args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        monkeypatch.setattr(Tensor, name, poisoned)
    like = torch.empty_like

    def poisoned_like(*args: Any, **kwargs: Any) -> Tensor:
        made = like(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty_like", poisoned_like)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def seeded(value: int = 7) -> Tensor:
    return torch.tensor([value], device=DEVICE)


def close(found: Tensor, wanted: Tensor, low: torch.dtype = torch.float32) -> None:
    """Relative to the whole tensor: 1e-5 in float32 (1e-4 on the matrix units), a few roundings in 16 bits."""
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    bound = 1e-4 if low == torch.float32 else 2e-2
    error = (found.double() - wanted.double()).norm()
    assert error <= bound * wanted.double().norm() + 1e-6, f"{error} of {wanted.norm()}"


# ------------------------------------------------------------------------------------------------------------- norm


def mask_of_norm(shape: tuple[int, int], seed: Tensor, site: int, p: float = P) -> Tensor:
    """(N, D): what the branch is multiplied with, read off a branch of ones."""
    zeros, D = torch.zeros(shape, device=DEVICE), shape[1]
    total, _, _, _ = add_norm(
        zeros, zeros + 1, zeros[0], zeros[0], zeros[0], seed=seed, site=site, p=p, eps=1e-8, low=torch.float32,
        wanted=Outputs(total=True),
    )  # fmt: skip
    assert total is not None
    assert total.shape == (shape[0], D)
    return total


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize(("N", "D"), [(1, 1), (37, 24), (70, 64), (5, 130)])
@pytest.mark.parametrize("p", [0.0, P])
def test_norm(N: int, D: int, low: torch.dtype, p: float) -> None:
    base, branch, bias = normal(N, D), normal(N, D, seed=1).to(low), normal(D, seed=2)
    weight, shift = 1 + normal(D, seed=3), normal(D, seed=4)
    leaves = [tensor.requires_grad_() for tensor in (base, branch, bias, weight, shift)]
    options = {"seed": seeded(), "site": 5, "p": p, "eps": 1e-6, "low": low}
    found = add_norm(*leaves, **options, wanted=Outputs(True, True, True, True))
    mask = mask_of_norm((N, D), seeded(), 5, p)
    total, out = reference.add_norm(*leaves, 1e-6, mask)
    for one, wanted in zip(found, (total, total, out, out), strict=True):
        assert one is not None
        close(one, wanted, one.dtype)
    if D == 1:
        return  # one number normalised is a constant: its gradient is rounding
    g = [normal(N, D, seed=10 + number) for number in range(4)]
    made = [one for one in found if one is not None]
    gradients = torch.autograd.grad(made, leaves, [a.to(b.dtype) for a, b in zip(g, made, strict=True)])
    expected = torch.autograd.grad([total, out], leaves, [g[0] + g[1], g[2] + g[3]])
    for one, wanted in zip(gradients, expected, strict=True):
        close(one, wanted, low)


def test_norm_without_a_branch_and_with_some_outputs() -> None:
    base, weight, shift = normal(9, 24).requires_grad_(), normal(24, seed=1), normal(24, seed=2)
    found = add_norm(
        base, None, None, weight, shift, seed=seeded(), site=0, p=P, eps=1e-6, low=torch.bfloat16,
        wanted=Outputs(out=True),
    )  # fmt: skip
    assert found[0] is found[1] is found[3] is None
    assert found[2] is not None
    _, out = reference.add_norm(base, None, None, weight, shift, 1e-6)
    close(found[2], out)
    g = normal(9, 24, seed=3)
    close(*(torch.autograd.grad(one, base, g)[0] for one in (found[2], out)))


def test_masks_follow_seed_and_site_and_keep_their_share() -> None:
    shape = (300, 40)
    mask = mask_of_norm(shape, seeded(), 1)
    values = mask.unique()
    assert values.tolist() == pytest.approx([0.0, 1 / (1 - P)])
    kept = float((mask > 0).double().mean())
    assert abs(kept - (1 - P)) < 4 * (P * (1 - P) / mask.numel()) ** 0.5
    assert torch.equal(mask, mask_of_norm(shape, seeded(), 1))
    for other in (mask_of_norm(shape, seeded(8), 1), mask_of_norm(shape, seeded(), 2)):
        agree = float(((other > 0) == (mask > 0)).double().mean())
        assert abs(agree - (P**2 + (1 - P) ** 2)) < 0.02, "independent masks"


# -------------------------------------------------------------------------------------------------------- attention


def histories(lengths: list[int]) -> Tensor:
    return torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(DEVICE)


ATTENTION = {"seed": seeded(), "site": 3}


@pytest.mark.parametrize("low", DOT)
@pytest.mark.parametrize(("causal", "pads"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize(("n_heads", "head"), [(1, 16), (3, 8), (2, 80)])
def test_attention(causal: bool, pads: bool, n_heads: int, head: int, low: torch.dtype) -> None:
    block, _ = blocks(head, low)
    D, n_places = n_heads * head, block + 9
    offsets = histories([block + 9, 1, 0, block, 5])
    N = int(offsets[-1])
    q, kv = normal(N, D).to(low).requires_grad_(), normal(N, 2 * D, seed=1).to(low).requires_grad_()
    bias = normal(3 * D, seed=2).requires_grad_()
    out = ragged_attention(
        q, kv, bias, offsets, n_places=n_places, n_heads=n_heads, causal=causal, pads=pads, p=0.0, **ATTENTION
    )  # fmt: skip
    q_, kv_ = (tensor.detach().double().requires_grad_() for tensor in (q, kv))
    bias_ = bias.detach().double().requires_grad_()
    wanted = reference.ragged_attention(q_, kv_, offsets, n_places, n_heads, causal, bias_[D:] if pads else None)
    close(out, wanted, low)
    g = normal(N, D, seed=3)
    found = torch.autograd.grad(out, (q, kv, bias), g.to(low))
    to_q, to_kv = torch.autograd.grad(wanted, (q_, kv_), g.to(low).double(), retain_graph=True)
    close(found[0], to_q, low)
    close(found[1], to_kv, low)
    to_bias = torch.cat([to_q.sum(0), to_kv.sum(0)])
    if pads:
        to_bias += torch.autograd.grad(wanted, bias_, g.to(low).double())[0]
    close(found[2], to_bias, low)


def test_attention_of_a_full_history_that_shuns_its_own_keys() -> None:
    """It has no pads; against logits of -130 the key that a pad would have weighs more than float32 can hold."""
    n_places, D = 20, 16
    offsets = histories([n_places, 3])
    q, v = normal(23, D), normal(23, D, seed=1)
    kv = torch.cat([q * (-130 * D**0.5 / q.square().sum(1, keepdim=True)), v], 1)
    bias = torch.zeros(3 * D, device=DEVICE)
    leaves = [tensor.clone().requires_grad_() for tensor in (q, kv, bias)]
    out = ragged_attention(*leaves, offsets, n_places=n_places, n_heads=1, causal=True, pads=True, p=0.0, **ATTENTION)
    twins = [tensor.double().requires_grad_() for tensor in (q, kv, bias)]
    wanted = reference.ragged_attention(twins[0], twins[1], offsets, n_places, 1, True, twins[2][D:])
    close(out, wanted)
    g = normal(23, D, seed=2)
    to_q, to_kv, to_pad = torch.autograd.grad(wanted, twins, g.double())
    expected = (to_q, to_kv, to_pad + torch.cat([to_q.sum(0), to_kv.sum(0)]))
    for one, other in zip(torch.autograd.grad(out, leaves, g), expected, strict=True):
        close(one, other)


# Pads stand before a history: only causal attention has them as keys.
@pytest.mark.parametrize(("causal", "pads"), [(False, False), (True, False), (True, True)])
def test_attention_drops_in_both_passes_alike(pads: bool, causal: bool) -> None:
    """Masks are read off values that are unit vectors, one for each key; of pads what is read is how many were kept."""
    lengths, n_places, n_heads, head = [20, 7, 1], 30, 2, 32
    D, offsets = n_heads * head, histories(lengths)
    N = int(offsets[-1])
    q, k = normal(N, D), normal(N, D, seed=1)
    bias = normal(3 * D, seed=2)
    options: dict[str, Any] = {
        "n_places": n_places, "n_heads": n_heads, "causal": causal, "pads": pads, "p": P, **ATTENTION,
    }  # fmt: skip
    place = torch.cat([n_places - length + torch.arange(length) for length in lengths]).to(DEVICE)
    units = torch.zeros(N, n_heads, head, device=DEVICE)
    units[torch.arange(N), :, place] = 1  # key j of any history answers in column n_places - length + j
    silent = bias.clone()
    silent[2 * D :] = 0
    spoken = silent.clone()
    spoken[2 * D :].view(n_heads, head)[:, 31] = 1  # pads answer in the last column, which is no place
    kv = torch.cat([k, units.view(N, D)], 1)
    answers, whole = (
        ragged_attention(q, kv, spoken, offsets, **{**options, "p": p}).view(N, n_heads, head) for p in (P, 0.0)
    )
    ratio = torch.where(whole > 0, answers / whole, 0.0)
    n_pads = torch.cat([torch.full((length,), n_places - length) for length in lengths]).to(DEVICE)
    masks = ratio[..., :n_places].clone()
    seen = whole[..., :n_places] > 0
    dropped = masks[seen] == 0
    assert dropped.any()
    assert masks[seen][~dropped].tolist() == pytest.approx([1 / (1 - P)] * int((~dropped).sum()), rel=1e-4)
    if pads:
        counts = ratio[..., 31] * (1 - P) * n_pads[:, None]
        assert (counts - counts.round()).abs().max() < 1e-3
        kept = float(counts.sum() / (n_pads.sum() * n_heads))
        assert abs(kept - (1 - P)) < 0.06
        for i in range(N):  # any choice of so many pads gives the same result
            for h in range(n_heads):
                masks[i, h, : int(n_pads[i])] = 0
                masks[i, h, : int(counts[i, h].round())] = 1 / (1 - P)
    kv = normal(N, 2 * D, seed=4)
    kv[:, :D] = k
    leaves = [tensor.clone().requires_grad_() for tensor in (q, kv, bias)]
    out = ragged_attention(*leaves, offsets, **options)
    twins = [tensor.detach().clone().requires_grad_() for tensor in leaves]
    pad = twins[2][D:] if pads else None
    wanted = reference.ragged_attention(twins[0], twins[1], offsets, n_places, n_heads, causal, pad, masks)
    close(out, wanted)
    g = normal(N, D, seed=5)
    found = torch.autograd.grad(out, leaves, g)
    expected = list(torch.autograd.grad(wanted, twins, g, allow_unused=True))
    rows = torch.cat([expected[0].sum(0), expected[1].sum(0)])
    expected[2] = rows if expected[2] is None else rows + expected[2]
    for one, other in zip(found, expected, strict=True):
        close(one, other)


# ------------------------------------------------------------------------------------- embedding, feed-forward, sums


@pytest.mark.parametrize("low", [None, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, P])
def test_embedding(low: torch.dtype | None, p: float) -> None:
    V, L, D, lengths = 11, 9, 24, [9, 1, 0, 4]
    offsets = histories(lengths)
    N = int(offsets[-1])
    places = torch.cat([L - length + torch.arange(length) for length in lengths]).to(DEVICE)
    ids = torch.randint(V, (N,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    items, positions = normal(V, D), normal(L, D, seed=1).requires_grad_()
    sink = Sink()
    options: dict[str, Any] = {"scale": 3.0, "p": p, "seed": seeded(), "site": 2, "sink": sink}
    ones = embed(items * 0, positions * 0 + 1, ids, places, offsets, **options, low=None)[0]
    states, states_low = embed(items, positions, ids, places, offsets, **options, low=low)
    twin_items, twin_positions = (tensor.detach().clone().requires_grad_() for tensor in (items, positions))
    wanted = reference.embed(twin_items, twin_positions, ids, places, 3.0, ones.detach())
    close(states, wanted)
    sink.buffer = normal(V, D, seed=3)
    before = sink.buffer.clone()
    g, g_low = normal(N, D, seed=4), normal(N, D, seed=5)
    if states_low is None:
        states.backward(g)
        wanted.backward(g)
    else:
        close(states_low, wanted, torch.bfloat16)
        torch.autograd.backward([states, states_low], [g, g_low.to(torch.bfloat16)])
        wanted.backward(g + g_low.to(torch.bfloat16).float())
    assert positions.grad is not None
    assert twin_positions.grad is not None
    assert twin_items.grad is not None
    close(positions.grad, twin_positions.grad)
    close(sink.buffer - before, twin_items.grad)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("p", [0.0, P])
def test_relu_dropout(low: torch.dtype, p: float) -> None:
    product, bias = normal(37, 24).to(low).requires_grad_(), normal(24, seed=1).requires_grad_()
    mask = relu_dropout(torch.ones(37, 24, device=DEVICE), torch.zeros(24, device=DEVICE), p=p, seed=seeded(), site=4)
    found = relu_dropout(product, bias, p=p, seed=seeded(), site=4)
    twins = [tensor.detach().float().requires_grad_() for tensor in (product, bias)]
    wanted = reference.relu_dropout(*twins, mask)
    close(found, wanted, low)
    g = normal(37, 24, seed=2)
    for one, other in zip(
        torch.autograd.grad(found, (product, bias), g.to(low)), torch.autograd.grad(wanted, twins, g), strict=True
    ):
        close(one, other, low)


@pytest.mark.parametrize("shape", [(1, 1), (264, 192), (300, 17)])
def test_sum_rows(shape: tuple[int, int]) -> None:
    partial = normal(*shape)
    close(sum_rows(partial), partial.sum(0))


@pytest.mark.parametrize(("rowwise", "lazy"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("D", [24, 64])
def test_adam(rowwise: bool, lazy: bool, D: int) -> None:
    V = 70
    tables = [normal(V, D) for _ in range(2)]
    states = [(torch.zeros_like(table), torch.zeros_like(table[:, :1] if rowwise else table)) for table in tables]
    step = torch.zeros((), device=DEVICE)
    for number in range(4):
        step += 1
        gradient = normal(V, D, seed=number)
        gradient[torch.arange(V) % 3 != number % 3] = 0
        for table, state, update in zip(tables, states, (adam_rows, reference.adam_rows), strict=True):
            update(table, gradient, *state, step, 0.01, 0.9, 0.98, 1e-8, 0.1 if not lazy else 0.0, rowwise, lazy)
    for one, other in zip((tables[0], *states[0]), (tables[1], *states[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
