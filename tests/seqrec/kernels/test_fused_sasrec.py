"""The fused encoder against the modules."""

from __future__ import annotations

import pytest
import torch

from seqrec import models
from seqrec.config import Sasrec
from seqrec.data.batches import Windows
from seqrec.models.fused import FusedSasrec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize(("heads", "width", "n_blocks"), [(1, 16, 2), (2, 24, 1), (3, 48, 3)])
def test_values_and_gradients(mask_padding, heads, width, n_blocks):
    torch.manual_seed(0)
    V, L = 50, 70
    config = Sasrec(
        name="sasrec",
        max_length=L,
        hidden_size=width,
        n_heads=heads,
        n_blocks=n_blocks,
        dropout=0.0,
        mask_padding=mask_padding,
    )
    model = models.build(config, V).to(DEVICE)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    lengths = torch.tensor([70, 3, 1, 0, 65, 64, 17])
    rows = torch.repeat_interleave(torch.arange(7), lengths)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    N = len(rows)
    places = L - lengths[rows] + torch.arange(N) - offsets[rows]
    windows = Windows(torch.randint(V, (N,)).to(DEVICE), rows.to(DEVICE), places.to(DEVICE), offsets.to(DEVICE), L)
    seed = torch.tensor([3], device=DEVICE)
    w = torch.randn(N, width, device=DEVICE)
    hidden = model.states(windows)
    (hidden * w).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    fused = FusedSasrec(model, torch.float32, seed)
    fused.refresh()
    fused.sink.buffer = torch.zeros(V, width, device=DEVICE)
    h2 = fused.states(windows)
    torch.testing.assert_close(h2, hidden.detach(), rtol=1e-4, atol=1e-4)
    (h2 * w).sum().backward()
    torch.testing.assert_close(fused.sink.buffer, expected.pop("item_table"), rtol=1e-3, atol=1e-3)
    for n, p in model.named_parameters():
        if n != "item_table":
            torch.testing.assert_close(p.grad, expected[n], rtol=1e-3, atol=1e-3, msg=lambda m, n=n: n + m)
