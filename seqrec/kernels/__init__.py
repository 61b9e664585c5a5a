"""Fused kernels of the encoder, and their eager twins: a leaf that imports torch and triton alone.

Every kernel has a twin with the same arguments in `reference`: plain PyTorch, the slow and obvious form, and what
`tests/seqrec/kernels` holds the kernel against. `why_not` says where the kernels cannot be used.

Randomness. A kernel that drops needs no generator: it draws from a counter-based generator (Philox) keyed by `seed`, a
tensor of one int64 on the device, and by `site`, the place in the network. A captured step that changes the seed's
value therefore gets new masks at every replay, and the backward pass gets those of the forward pass by drawing them
again.
"""

from __future__ import annotations

import torch

WIDEST = 512
"""Columns of a row that a kernel can hold."""


def why_not(device: torch.device, width: int, head_width: int) -> str | None:
    """Why the encoder's kernels cannot run here, as a law that is broken; None: they can."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "the package triton"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "a GPU of compute capability 8.0 or more"
    if width > WIDEST:
        return f"hidden_size <= {WIDEST}"
    if head_width > 256:
        return "hidden_size / n_heads <= 256"
    return None
