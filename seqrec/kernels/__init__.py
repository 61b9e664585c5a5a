"""Fused kernels, and their eager twins: a leaf that imports torch and triton alone.

Of the encoder and the optimiser: `attention`, `norm`, `embedding`, `feedforward`, `matrix`, `adam`; twins in
`reference`. Of the losses: `cross_entropy`, `sampled`, `shared`, `rece`, `sce`; of evaluation: `ranking`; twins of the
same names in `twins`. A twin is plain PyTorch with the same arguments, the slow and obvious form, and what
`tests/seqrec/kernels` holds the kernel against. `why_not` says where the kernels cannot be used.

A loss is a function (hidden_ND, items_VD, targets_N, weights_N, ...) -> (value, its gradient by the states, by the
items): operands rounded to 16 bits, sums in float32, shapes that only shapes decide, nothing that waits for the device.

Randomness. A kernel that drops or draws needs no generator: it draws from a counter-based generator (Philox) keyed by
`seed`, a tensor of one int64 on the device. A captured step that changes the seed's value therefore gets new numbers at
every replay, and the backward pass gets those of the forward pass by drawing them again.
"""

from __future__ import annotations

import torch

WIDEST = 512
"""Columns of a row that a kernel can hold."""


def why_not(device: torch.device, width: int, head_width: int) -> str | None:
    """Why the kernels cannot run here, as a law that is broken; None: they can."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "the package triton"
    if width > WIDEST:
        return f"item embeddings of at most {WIDEST} numbers"
    if head_width > 256:
        return "hidden_size / n_heads <= 256"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "a GPU of compute capability 8.0 or more"
    return None
