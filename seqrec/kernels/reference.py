"""The eager twins: what every kernel computes, in plain PyTorch. Where a kernel draws a mask, the twin is given it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def embed(
    item_table: Tensor, position_table: Tensor, ids: Tensor, places: Tensor, scale: float, mask: Tensor
) -> Tensor:
    """mask: (N, D), 0 where a number is dropped, 1 / (1 - p) elsewhere."""
    return (item_table[ids] * scale + position_table[places]) * mask


def add_norm(
    base: Tensor,
    branch: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(total, out)."""
    total = base
    if branch is not None and bias is not None:
        total = base + (branch + bias) * (1 if mask is None else mask)
    return total, F.layer_norm(total, weight.shape, weight, shift, eps)


def relu_dropout(product: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return F.relu(product + bias) * mask


def ragged_attention(
    query: Tensor,
    key_value: Tensor,
    offsets: Tensor,
    n_places: int,
    n_heads: int,
    causal: bool,
    pad: Tensor | None = None,
    masks: Tensor | None = None,
) -> Tensor:
    """One history, one head, one query at a time. pad: (2 D,) key and value of a pad; None: there are none. masks: (N,
    n_heads, n_places), what each key's weight is multiplied with, by its place; None: 1."""
    D = query.shape[1]
    head = D // n_heads
    keys, values = key_value.split(D, dim=1)
    rows = []
    for start, end in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        n_pads = n_places - (end - start)
        for i in range(start, end):
            parts = []
            for h in range(n_heads):
                part = slice(h * head, (h + 1) * head)
                seen = slice(start, i + 1 if causal else end)
                k, v, first = keys[seen, part], values[seen, part], n_pads
                if pad is not None:
                    pad_key, pad_value = pad.split(D)
                    k = torch.cat([pad_key[part].expand(n_pads, -1), k])
                    v = torch.cat([pad_value[part].expand(n_pads, -1), v])
                    first = 0
                weights = (k @ query[i, part] * head**-0.5).softmax(0)
                if masks is not None:
                    weights = weights * masks[i, h, first : first + len(k)]
                parts.append(weights @ v)
            rows.append(torch.cat(parts))
    return torch.stack(rows) if rows else query[:0]


def adam_rows(
    table: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    rowwise: bool,
    lazy: bool,
) -> None:
    """As `seqrec.kernels.adam.adam_rows`."""
    touched = torch.ones_like(gradient[:, :1], dtype=torch.bool)
    if lazy:
        touched = (gradient != 0).any(1, keepdim=True)
    gradient = gradient + weight_decay * table
    squares = gradient.square().mean(1, keepdim=True) if rowwise else gradient.square()
    mean.copy_(torch.where(touched, beta1 * mean + (1 - beta1) * gradient, mean))
    square.copy_(torch.where(touched, beta2 * square + (1 - beta2) * squares, square))
    scale = (square / (1 - beta2**step)).sqrt() + eps
    table.copy_(torch.where(touched, table - lr / (1 - beta1**step) * mean / scale, table))
