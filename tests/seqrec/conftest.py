"""What tests of kernels share where there is no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies by the CPU's library, whose sums depend on an element's place in the tile. A product
    in float32 on a device does not, which is what ranks rest on: here too each element is one chain in the order of
    the columns."""
    import torch

    def matmul(a: Any, b: Any, dtype: Any = None) -> Any:
        total = np.zeros((a.shape[0], b.shape[1]), dtype)
        for column, row in zip(a.T, b, strict=True):
            total += column[:, None] * row[None, :]
        return total

    if not torch.cuda.is_available():
        monkeypatch.setattr("triton.runtime.interpreter.np.matmul", matmul)
