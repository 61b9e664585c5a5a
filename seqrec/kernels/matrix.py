"""Matrix products with float32 master weights and operands in a low dtype: gradients of weights come out in float32.

The low copies are made by the caller, once a step for all weights together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, weight_low: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight_low)
        return inputs @ weight_low.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs, weight_low = ctx.saved_tensors
        return gradient @ weight_low, outer(gradient, inputs), None


class _QueryKeyValue(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, to_query: Tensor, to_key_value: Tensor, weight: Tensor, weight_low: Tensor, bias_low: Tensor
    ) -> tuple[Tensor, Tensor]:
        D = weight.shape[1]
        ctx.save_for_backward(to_query, to_key_value, weight_low)
        query = torch.addmm(bias_low[:D], to_query, weight_low[:D].t())
        key_value = torch.addmm(bias_low[D:], to_key_value, weight_low[D:].t())
        return query, key_value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_query: Tensor, g_key_value: Tensor) -> tuple[Tensor | None, ...]:
        to_query, to_key_value, weight_low = ctx.saved_tensors
        D = weight_low.shape[1]
        to_weight = torch.cat([outer(g_query, to_query), outer(g_key_value, to_key_value)])
        return g_query @ weight_low[:D], g_key_value @ weight_low[D:], to_weight, None, None


def product(inputs_ND: Tensor, weight_ED: Tensor, weight_low_ED: Tensor) -> Tensor:
    """(N, E) in the inputs' dtype. weight_ED: the float32 parameter, which gets the gradient; weight_low_ED: its copy
    in the inputs' dtype, which is multiplied with."""
    result: Tensor = _Product.apply(inputs_ND, weight_ED, weight_low_ED)
    return result


def query_key_value(
    to_query_ND: Tensor, to_key_value_ND: Tensor, weight: Tensor, weight_low: Tensor, bias_low: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries (N, D), and keys and values (N, 2 D), with their biases.

    weight: (3 D, D), as in `torch.nn.MultiheadAttention`; bias_low: (3 D,), whose gradient `ragged_attention` gives.
    """
    result: tuple[Tensor, Tensor] = _QueryKeyValue.apply(to_query_ND, to_key_value_ND, weight, weight_low, bias_low)
    return result


def outer(gradient_NE: Tensor, inputs_ND: Tensor) -> Tensor:
    """(E, D) float32: the sum over rows of their outer products, accumulated in float32."""
    if gradient_NE.dtype == torch.float32:
        return gradient_NE.t() @ inputs_ND
    if gradient_NE.device.type == "cuda":
        return torch.mm(gradient_NE.t(), inputs_ND, out_dtype=torch.float32)
    return gradient_NE.t().float() @ inputs_ND.float()
