"""Losses of a position's target and K candidates that a group of positions shares: softmax (CE-, CCE-) and binary.

    s_ik = x_i . w_k, k of the candidates of i's group;   r_i of them equal i's target y
    softmax  loss_i = -s_iy + log( exp(s_iy) + sum_{k: not y} exp(s_ik + c_ik) );   0 if all are y
             c_ik = 0  |  log(V - 1) - log(K - r_i)  |  log(1 - q_y) - log(K - r_i) - log q_k
    binary   loss_i = scale ( beta a(s_iy) + sum_k a(-s_ik) ),   scale = 1 / (1 + K) or 1
             a(s) = -log sigmoid(s)  or, BCE+,  -log(sigmoid(s) + eps)
    value = sum_i g_i loss_i;   d x_i = sum_j e_ij w_j;   d w_j = sum_i e_ij x_i;   e_ij = g_i d loss_i / d s_ij

Sharing turns gathered rows into matrix products: a candidate's row is loaded once, and its gradient added once, for a
group, not for a position. Each position still sees K draws of its own distribution; what it costs is correlation, in
the gradient of the items, between positions that are alike. Hence interleaved groups: position i belongs to group
i % G, so that neighbours, mostly of one user, meet different candidates.

Tiling. `forward`, one program a stretch of a group's positions: the group's candidates pass by tiles, gathered row by
row, each tile used for two products, scores and d x; softmax online, apart from the target, which comes in at the end
with the factor that c_ik has in common, when r_i is known. `backward`, one program a tile of a group's candidates: the
positions pass, scores are computed again, d w is summed in registers and added to the dense gradient once. Groups too
few to fill the card are cut by positions there.

Operands are rounded once to `dtype`, sums are float32. The table is copied in `dtype` only if so many rows are gathered
that the copy is repaid; else rows are rounded as they come. Value and d x are deterministic, d w is not bit for bit:
atomic additions. No data-dependent shapes, no waiting for the device: capturable.

Memory beside arguments and gradients: 2 V D bytes if the table is copied, and 2 D + 8 bytes a position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from seqrec.kernels import WIDEST
from seqrec.kernels.launch import dtypes, pointer, power_of_2
from seqrec.kernels.shared_kernels import COUNT, LOG_Q, NONE, backward, forward
from seqrec.kernels.shared_plan import plan

CORRECTIONS = {"none": NONE.value, "log_count": COUNT.value, "log_q": LOG_Q.value}


@dataclass(frozen=True)
class _Family:
    softmax: bool
    correction: int = NONE.value
    plus: bool = False
    beta: float = 1.0
    scale: float = 1.0
    eps: float = 0.0


def _run(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor,
    offsets: Tensor | None,
    log_q: Tensor | None,
    family: _Family,
    dtype: torch.dtype,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (N, D), V, (G, K) = hidden.shape, len(items), ids.shape
    ragged = offsets is not None
    new: dict[str, Any] = {"device": hidden.device, "dtype": torch.float32}
    to_items = torch.zeros((V, D) if gradients else (0,), **new)
    if N == 0:
        return torch.zeros((), **new), torch.zeros((0, D) if gradients else (0,), **new), to_items
    p = plan(N, V, D, G, K, ragged, dtype, hidden.device)
    if p.copied:
        items = items.to(dtype)
    hidden, items, targets, ids = (tensor.contiguous() for tensor in (hidden, items, targets, ids))
    weights = None if weights is None else weights.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    log_q = None if log_q is None else log_q.to(torch.float32).contiguous()
    # Positions of no group, which only offsets can leave over, have no program to write their rows.
    make = torch.zeros if ragged else torch.empty
    to_hidden = make((N, D) if gradients else (0,), **new)
    values = hidden.new_empty(p.programs, dtype=torch.float32)
    block_d, n_places = power_of_2(D), p.programs * p.forward.rows if gradients else 1
    hidden_low = hidden.new_empty((n_places, block_d), dtype=dtype)
    terms = hidden.new_empty(n_places, dtype=torch.float32)
    keys = hidden.new_empty(n_places, dtype=torch.int32)
    largest = values if weights is None else weights.max().to(torch.float32)
    options: dict[str, Any] = {
        "D": D, "BLOCK_D": block_d, "LOW": dtypes[dtype], "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "RAGGED": ragged, "WEIGHTS": weights is not None, "SOFTMAX": family.softmax, "CORRECTION": family.correction,
        "PLUS": family.plus,
    }  # fmt: skip
    unit = 1 / N
    forward[(p.programs,)](
        hidden, items, targets, pointer(weights, hidden), largest, ids, pointer(offsets, ids), pointer(log_q, values),
        hidden_low, terms, keys, to_hidden, to_items, values,
        N, V, G, K, p.per_group, G.bit_length(), unit, math.log2(max(1, V - 1)), family.beta, family.scale, family.eps,
        ROWS=p.forward.rows, ITEMS=p.forward.columns, COPIES=max(1, 32 * p.forward.warps // p.forward.columns),
        GRADIENTS=gradients,
        num_warps=p.forward.warps, num_stages=p.forward.stages, **options,
    )  # fmt: skip
    if gradients:
        backward[(triton.cdiv(K, p.backward.columns) * p.stretches,)](
            items, ids, pointer(offsets, ids), pointer(log_q, values), hidden_low, terms, keys, largest, to_items,
            N, V, G, K, p.length, p.stretches_per_group, p.per_group, G.bit_length(),
            family.scale * (unit if weights is None else 1.0), family.eps,
            ROWS=p.backward.rows, ITEMS=p.backward.columns, STRETCH=p.forward.rows,
            num_warps=p.backward.warps, num_stages=p.backward.stages, **options,
        )  # fmt: skip
    return values.sum(), to_hidden, to_items


@torch.library.custom_op("seqrec::shared_softmax", mutates_args=())
def _softmax(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor,
    offsets: Tensor | None,
    log_q: Tensor | None,
    correction: str,
    dtype: torch.dtype,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # Without log probabilities every item is as likely: the two corrections are then one.
    kind = CORRECTIONS[correction]
    kind = CORRECTIONS["log_count"] if log_q is None and kind == CORRECTIONS["log_q"] else kind
    log_q = log_q if kind == CORRECTIONS["log_q"] else None
    family = _Family(softmax=True, correction=kind)
    return _run(hidden, items, targets, weights, ids, offsets, log_q, family, dtype, gradients)


@torch.library.custom_op("seqrec::shared_binary", mutates_args=())
def _binary(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor,
    offsets: Tensor | None,
    beta: float,
    mean: bool,
    plus: bool,
    eps: float,
    dtype: torch.dtype,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scale = 1 / (1 + ids.shape[1]) if mean else 1.0
    family = _Family(softmax=False, plus=plus, beta=beta, scale=scale, eps=eps)
    return _run(hidden, items, targets, weights, ids, offsets, None, family, dtype, gradients)


def _fake(hidden: Tensor, items: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    to_hidden, to_items = (one.new_empty(one.shape if gradients else 0, dtype=torch.float32) for one in (hidden, items))
    return hidden.new_empty((), dtype=torch.float32), to_hidden, to_items


@_softmax.register_fake
def _(hidden, items, targets, weights, ids, offsets, log_q, correction, dtype, gradients):
    return _fake(hidden, items, gradients)


@_binary.register_fake
def _(hidden, items, targets, weights, ids, offsets, beta, mean, plus, eps, dtype, gradients):
    return _fake(hidden, items, gradients)


Result = tuple[Tensor, Tensor | None, Tensor | None]


def shared_softmax(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor,
    offsets: Tensor | None = None,
    correction: str = "none",
    log_q: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    gradients: bool = True,
) -> Result:
    """Value (), d hidden (N, D) and d items (V, D), float32, of the softmax over target and shared candidates; the
    module's docstring has the equations. The gradients are None if not wanted.

    ids: (G, K) int32 or int64, the candidates of each group. offsets: None: position i belongs to group i % G; else
    (G + 1,), ascending, int32 or int64: group g is the positions offsets[g] .. offsets[g + 1] - 1, of any number, and a
    position of no group counts for nothing. weights_N: at least 0; None: 1 / N each. correction: none | log_count |
    log_q, the last with log_q (V,), log probabilities, or None for uniform. dtype: of the operands, float16, bfloat16
    or float32 (exact, slow). A target or a candidate outside [0, V), or an infinite or undefined score, makes the value
    NaN. Raises ValueError for arguments that break these laws.
    """
    _check(hidden_ND, items_VD, targets_N, weights_N, ids, offsets, dtype)
    _law("correction", correction, correction in CORRECTIONS, " | ".join(CORRECTIONS))
    shape = None if log_q is None else tuple(log_q.shape)
    _law("log_q", shape, log_q is None or shape == (len(items_VD),), f"({len(items_VD)},) or None")
    value, to_hidden, to_items = _softmax(
        hidden_ND.detach(), items_VD.detach(), targets_N, weights_N, ids, offsets, log_q, correction, dtype, gradients
    )
    return (value, to_hidden, to_items) if gradients else (value, None, None)


def shared_binary(
    hidden_ND: Tensor,
    items_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    *,
    ids: Tensor,
    offsets: Tensor | None = None,
    beta: float = 1.0,
    mean: bool = True,
    plus: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float16,
    gradients: bool = True,
) -> Result:
    """As `shared_softmax`, of the binary losses: BCE as it stands, gBCE with its beta, BCE+ with plus and not mean.

    Candidates that equal the target are not rejected. mean: over the 1 + K scores, else their sum. plus: eps > 0 is
    added to every likelihood.
    """
    _check(hidden_ND, items_VD, targets_N, weights_N, ids, offsets, dtype)
    _law("eps", eps, not plus or eps > 0, "> 0")
    value, to_hidden, to_items = _binary(
        hidden_ND.detach(), items_VD.detach(), targets_N, weights_N, ids, offsets, beta, mean, plus, eps, dtype,
        gradients,
    )  # fmt: skip
    return (value, to_hidden, to_items) if gradients else (value, None, None)


def _check(
    hidden: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    ids: Tensor,
    offsets: Tensor | None,
    dtype: torch.dtype,
) -> None:
    N, V = len(hidden), len(items)
    _law("hidden_ND", tuple(hidden.shape), hidden.ndim == 2 and 1 <= hidden.shape[1] <= WIDEST, f"(N, 1 to {WIDEST})")
    _law("hidden_ND", tuple(hidden.shape), hidden.numel() < 2**31, "fewer than 2^31 numbers")
    _law("items_VD", tuple(items.shape), V > 0 and items.shape[1:] == hidden.shape[1:], "(V, D) with the states' D")
    _law("targets_N", tuple(targets.shape), targets.shape == (N,), f"({N},)")
    if weights is not None:
        _law("weights_N", tuple(weights.shape), weights.shape == (N,), f"({N},) or None")
    _law("dtype", dtype, dtype in dtypes, "float16 | bfloat16 | float32")
    fits = ids.ndim == 2 and ids.numel() > 0 and ids.shape[1] < 2**24
    _law("ids", tuple(ids.shape), fits, "(G, K), G >= 1, 1 <= K < 2^24")
    if offsets is not None:
        G = len(ids)
        _law("offsets", tuple(offsets.shape), offsets.shape == (G + 1,), f"({G + 1},) or None")
    for name, one in (("targets_N", targets), ("ids", ids), ("offsets", offsets)):
        whole = one is None or one.dtype in (torch.int32, torch.int64)
        _law(name, None if one is None else one.dtype, whole, "int32 or int64")


def _law(name: str, got: object, holds: bool, law: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {got}; expected {law}.")
