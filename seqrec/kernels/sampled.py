"""Losses of a position's target and K candidate items of its own: softmax (CE-, CCE-) and binary (BCE, gBCE, BCE+).

    s_ik = x_i . w_k;   r_i of the candidates k of position i equal its target y
    softmax  loss_i = -s_iy + log( exp(s_iy) + sum_{k: not y} exp(s_ik + c_ik) );   0 if all are y
             c_ik = 0  |  log(V - 1) - log(K - r_i)  |  log(1 - q_y) - log(K - r_i) - log q_k
    binary   loss_i = scale ( beta a(s_iy) + sum_k a(-s_ik) ),   scale = 1 / (1 + K) or 1
             a(s) = -log sigmoid(s)  or, BCE+,  -log(sigmoid(s) + eps)
    value = sum_i weight_i loss_i;   e_ij = d value / d s_ij;   d x_i = sum_j e_ij w_j;   d w_j = sum_i e_ij x_i

Candidates are given, or drawn where they are needed (`draws`) and drawn again where they are needed again.

Order. (1) `rows_forward`, one program a position: gathers its candidates' rows once for loss and d x, with one online
softmax a lane; the common factor of c_ik comes in at the end, when r_i is known. It leaves one number a position, from
which e_ij follows given s_ij, and counts for each item how often it is drawn. (2) The items' gradient. With few pairs
of position and candidate, one program a position adds to the rows of d w by atomic additions. Else pairs are dealt into
a list an item: running sum of the counts, `fill_lists`, and `by_item` walks over an item's list with w_j and its sum in
registers, computes s_ij again from the states, which lie in the cache, and writes the row once, where atomic additions
would read and write it for each pair. Lists hold positions in 16 bits, and positions are dealt in portions, so that all
lists take at most `list_bytes`, whatever N and K are. Programs help each other with lists longer than 2^`SPAN_BITS`.

Operands in `dtype` (where few pairs are scored: as they are, since a copy would cost more), products and sums in
float32 on the ordinary cores: e_ij is never rounded to 16 bits, and no exponent needs a shift. Value and d x are
deterministic; d w is not bit for bit: atomic additions, or lists whose order varies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.kernels import WIDEST
from seqrec.kernels.sampled_launch import CORRECTIONS, SCATTERS, Family, run
from seqrec.kernels.sampled_rows import COUNT, LOG_Q


@torch.library.custom_op("seqrec::sampled_softmax", mutates_args=())
def _softmax(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor | None,
    seed: Tensor | None,
    popularity: Tensor | None,
    log_q: Tensor | None,
    n_candidates: int,
    correction: str,
    dtype: torch.dtype,
    gradients: bool,
    scatter: str,
) -> tuple[Tensor, Tensor, Tensor]:
    # Without a table every item is as likely: the two corrections are then one.
    kind = CORRECTIONS[correction]
    kind = COUNT if kind == LOG_Q and log_q is None else kind
    return run(
        hidden, items, targets, weights, ids, seed, popularity, log_q if kind == LOG_Q else None, n_candidates,
        Family(softmax=True, correction=kind), dtype, gradients, scatter,
    )  # fmt: skip


@torch.library.custom_op("seqrec::sampled_binary", mutates_args=())
def _binary(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor | None,
    seed: Tensor | None,
    popularity: Tensor | None,
    n_candidates: int,
    beta: float,
    mean: bool,
    plus: bool,
    eps: float,
    dtype: torch.dtype,
    gradients: bool,
    scatter: str,
) -> tuple[Tensor, Tensor, Tensor]:
    scale = 1 / (1 + n_candidates) if mean else 1.0
    family = Family(softmax=False, plus=plus, beta=beta, scale=scale, eps=eps)
    return run(
        hidden, items, targets, weights, ids, seed, popularity, None, n_candidates, family, dtype, gradients, scatter
    )


def _fake(hidden: Tensor, items: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    to_hidden, to_items = (one.new_empty(one.shape if gradients else 0, dtype=torch.float32) for one in (hidden, items))
    return hidden.new_empty((), dtype=torch.float32), to_hidden, to_items


@_softmax.register_fake
def _(hidden, items, targets, weights, ids, seed, popularity, log_q, n, correction, dtype, gradients, scatter):
    return _fake(hidden, items, gradients)


@_binary.register_fake
def _(hidden, items, targets, weights, ids, seed, popularity, n, beta, mean, plus, eps, dtype, gradients, scatter):
    return _fake(hidden, items, gradients)


Result = tuple[Tensor, Tensor | None, Tensor | None]


def sampled_softmax(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    seed: Tensor | None = None,
    n_negatives: int | None = None,
    popularity: Tensor | None = None,
    correction: str = "none",
    log_q: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    gradients: bool = True,
    scatter: str = "auto",
) -> Result:
    """Value (), d hidden (N, D) and d items (V, D), float32, of the softmax over target and candidates; the module's
    docstring has the equations. The gradients are None if not wanted.

    Candidates: ids, (N, K) int32 or int64; or seed, one int64 on the device, with n_negatives = K, uniform or by an
    alias table `popularity` (`draws.alias_table`). weights_N: None: 1 / N each; a position of weight 0 is skipped.
    correction: none | log_count | log_q, the last with log_q (V,), log probabilities, or None for uniform. dtype: of
    the operands, float16, bfloat16 or float32. scatter: how d items is summed, auto | lists | atomics. A target or a
    candidate outside [0, V), or an infinite or undefined score, makes the value NaN. Raises ValueError for arguments
    that break these laws.
    """
    n = _check(hidden_ND, items_VD, targets_N, weights_N, ids, seed, n_negatives, popularity, dtype, scatter)
    _law("correction", correction, correction in CORRECTIONS, " | ".join(CORRECTIONS))
    shape = None if log_q is None else tuple(log_q.shape)
    _law("log_q", shape, log_q is None or shape == (len(items_VD),), f"({len(items_VD)},) or None")
    known = correction != "log_q" or popularity is None or log_q is not None
    _law("log_q", None, known, "log probabilities beside popularity and correction log_q")
    log_q = None if log_q is None else log_q.detach().to(torch.float32).contiguous()
    value, to_hidden, to_items = _softmax(
        hidden_ND.detach(), items_VD.detach(), targets_N, weights_N, ids, seed, popularity, log_q, n, correction, dtype,
        gradients, scatter,
    )  # fmt: skip
    return (value, to_hidden, to_items) if gradients else (value, None, None)


def sampled_binary(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    seed: Tensor | None = None,
    n_negatives: int | None = None,
    popularity: Tensor | None = None,
    beta: float = 1.0,
    mean: bool = True,
    plus: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float16,
    gradients: bool = True,
    scatter: str = "auto",
) -> Result:
    """As `sampled_softmax`, of the binary losses: BCE as it stands, gBCE with its beta, BCE+ with plus and not mean.

    Candidates that equal the target are not rejected. mean: over the 1 + K scores, else their sum. plus: eps, at most
    0.001, is added to every likelihood.
    """
    n = _check(hidden_ND, items_VD, targets_N, weights_N, ids, seed, n_negatives, popularity, dtype, scatter)
    _law("eps", eps, not plus or 0 < eps <= 1e-3, "in (0, 0.001]")
    value, to_hidden, to_items = _binary(
        hidden_ND.detach(), items_VD.detach(), targets_N, weights_N, ids, seed, popularity, n, beta, mean, plus, eps,
        dtype, gradients, scatter,
    )  # fmt: skip
    return (value, to_hidden, to_items) if gradients else (value, None, None)


def _check(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor | None,
    seed: Tensor | None,
    n_negatives: int | None,
    popularity: Tensor | None,
    dtype: torch.dtype,
    scatter: str,
) -> int:
    """K."""
    N, V = len(hidden), len(items)
    _law("items_VD", tuple(items.shape), V > 0 and items.shape[1:] == hidden.shape[1:], "(V, D) with the states' D")
    _law("hidden_ND", tuple(hidden.shape), 0 < hidden.shape[1] <= WIDEST, f"at most {WIDEST} numbers a state")
    _law("targets_N", tuple(targets.shape), targets.shape == (N,), f"({N},)")
    if weights is not None:
        _law("weights_N", tuple(weights.shape), weights.shape == (N,), f"({N},) or None")
    _law("dtype", dtype, dtype in (torch.float16, torch.bfloat16, torch.float32), "float16 | bfloat16 | float32")
    _law("scatter", scatter, scatter in SCATTERS, " | ".join(SCATTERS))
    if ids is not None:
        _law("seed, n_negatives", (seed, n_negatives), seed is None and n_negatives is None, "None beside ids")
        _law("ids", tuple(ids.shape), ids.ndim == 2 and len(ids) == N and ids.shape[1] > 0, f"({N}, K), K >= 1")
        return ids.shape[1]
    if seed is None or n_negatives is None:
        raise ValueError("ids: got None; expected ids, or a seed with n_negatives.")
    _law("seed", seed.dtype, seed.dtype == torch.int64 and seed.numel() == 1, "one int64")
    _law("n_negatives", n_negatives, n_negatives >= 1, ">= 1")
    if popularity is not None:
        fits = popularity.shape == (V, 2) and popularity.dtype == torch.int32 and popularity.is_contiguous()
        _law("popularity", tuple(popularity.shape), fits, f"({V}, 2) int32, contiguous")
    return n_negatives


def _law(name: str, got: object, holds: bool, law: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {got}; expected {law}.")
