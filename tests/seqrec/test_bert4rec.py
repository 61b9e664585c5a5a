"""BERT4Rec against a slow twin on padded tensors, with explicit masks, built from torch.nn.MultiheadAttention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrec import models
from seqrec.config import Bert4rec
from seqrec.data.batches import Windows
from seqrec.models import grids
from seqrec.models.base import SequenceModel
from seqrec.models.bert4rec import LayerNorm

V, L, D = 11, 6, 8
HEADS = [("untied", True), ("untied", False), ("tied", True), ("tied", False)]


def make(**changes: Any) -> tuple[SequenceModel, Bert4rec]:
    settings = {"name": "bert4rec", "max_length": L, "hidden_size": D, "n_heads": 2, "dropout": 0.0, **changes}
    config = Bert4rec(**settings)
    torch.manual_seed(3)
    model = models.build(config, V).double()
    for parameter in model.parameters():  # norms and biases away from one and zero, so that a forgotten one shows
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, config


def batch(lengths: list[int], width: int = L) -> tuple[Tensor, Tensor, Tensor]:
    """Histories left-padded to `width`: items, valid, masked, each (B, width)."""
    random = torch.Generator().manual_seed(7)
    valid = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    items = torch.randint(0, V, (len(lengths), width), generator=random) * valid
    return items, valid, (torch.rand(len(lengths), width, generator=random) < 0.4) & valid


def packed(items: Tensor, valid: Tensor, masked: Tensor | None = None) -> Windows:
    rows, places = valid.nonzero().T
    lengths = valid.sum(1)
    hidden = None if masked is None else masked[valid]
    return Windows(items[valid], rows, places, F.pad(lengths.cumsum(0), (1, 0)), int(lengths.max()), hidden)


def slow_twin(model: SequenceModel, config: Bert4rec, items: Tensor, valid: Tensor, masked: Tensor) -> Tensor:
    """(B, T, D + bias): the published forward pass without dropout, every pad computed."""
    weights = dict(model.named_parameters())
    T = items.shape[1]

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}

    def norm(x: Tensor, name: str) -> Tensor:
        scaled = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
        return weights[f"{name}.weight"] * scaled + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = torch.where(masked[:, :, None], weights["mask_vector"], weights["item_table"][items][..., :D])
    x = x + weights["position_table"][-T:]
    for number in range(config.n_blocks):
        name = f"blocks.{number}"
        attention = nn.MultiheadAttention(D, config.n_heads, batch_first=True).double()
        normal = norm(x, f"{name}.attention_norm")
        arguments = {"key_padding_mask": ~valid, "need_weights": True}
        seen = torch.func.functional_call(attention, part(f"{name}.attention."), (normal,) * 3, arguments)[0]
        x = x + seen
        x = x + linear(gelu(linear(norm(x, f"{name}.feed_forward_norm"), f"{name}.widen")), f"{name}.narrow")
    return torch.cat([x, torch.ones_like(x[..., :1])], -1) if config.head_bias else x


@pytest.mark.parametrize(("head", "head_bias"), HEADS)
@pytest.mark.parametrize("n_heads", [1, 4])
def test_values_and_gradients_equal_the_padded_twins(head: str, head_bias: bool, n_heads: int) -> None:
    model, config = make(n_heads=n_heads, head=head, head_bias=head_bias)
    items, valid, masked = batch([6, 1, 3, 2, 5])
    hidden, twin = model.states(packed(items, valid, masked)), slow_twin(model, config, items, valid, masked)[valid]
    torch.testing.assert_close(hidden, twin, rtol=1e-9, atol=1e-9)
    names, parameters = zip(*model.named_parameters(), strict=True)
    targets, table = items[valid], model.item_embeddings()
    losses = [F.cross_entropy(states @ table.T, targets) for states in (hidden, twin)]
    found, expected = (torch.autograd.grad(loss, parameters) for loss in losses)
    for name, one, other in zip(names, found, expected, strict=True):
        assert other.any() or "in_proj_bias" in name
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=name)


def test_short_and_long_histories_are_not_mixed_up() -> None:
    """Lengths on every side of those that share a grid."""
    model, config = make(max_length=40)
    items, valid, masked = batch([40, 3, 9, 33, 8, 1, 32, 20], width=40)
    with torch.no_grad():
        twin = slow_twin(model, config, items, valid, masked)
        torch.testing.assert_close(model.states(packed(items, valid, masked)), twin[valid], rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
def test_the_gpu_computes_what_the_cpu_does() -> None:
    model, _ = make(max_length=40)
    windows = packed(*batch([40, 3, 9, 0, 33, 8, 1, 32, 20], width=40))
    assert windows.masked is not None
    model.float()
    ends = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad(set_to_none=True)
        tensors = (windows.items, windows.rows, windows.places, windows.offsets)
        moved = Windows(*(t.to(device) for t in tensors), windows.longest, windows.masked.to(device))
        hidden = model.states(moved)
        (hidden[:, :D] * torch.arange(D, device=device)).sum().backward()
        # Copies: moving the model moves the gradients that it holds.
        gradients = [p.grad.to("cpu", copy=True) for p in model.parameters() if p.grad is not None]
        ends.append([hidden.detach().cpu(), *gradients])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_masked_item_leaves_no_trace() -> None:
    """Its identity changes no state; any other item's changes every state of its history, and none of another's."""
    model, _ = make()
    items, valid, _ = batch([6, 4])
    masked = torch.zeros_like(valid)
    masked[0, 2] = masked[1, 5] = True
    before = model.states(packed(items, valid, masked))
    items[masked] = (items[masked] + 1) % V
    assert torch.equal(model.states(packed(items, valid, masked)), before)
    items[0, 4] = (items[0, 4] + 1) % V
    change = (model.states(packed(items, valid, masked)) - before).abs().amax(1)
    assert (change[:6] > 0).all()
    assert (change[6:] == 0).all()


def test_a_masked_item_gets_no_gradient_from_the_input() -> None:
    model, _ = make()
    items, valid, masked = batch([6, 5])
    items[masked], items[valid & ~masked] = 1, 2
    model.states(packed(items, valid, masked)).square().sum().backward()
    gradient = model.get_parameter("item_table").grad
    assert gradient is not None
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("length", [2, 3, L])
def test_a_history_is_encoded_by_a_mask_behind_its_last_items(length: int) -> None:
    """The published shift: the first of `max_length` items gives way. More full histories than a spare row holds."""
    model, config = make(max_length=length)
    lengths = [1, length, 2, *[length] * (length + 2), 1]
    items, valid, _ = batch(lengths, width=length)
    shifted = torch.cat([items[:, 1:], torch.zeros_like(items[:, :1])], 1)
    there = torch.cat([valid[:, 1:], torch.ones_like(valid[:, :1])], 1)
    masked = torch.zeros_like(there)
    masked[:, -1] = True
    expected = slow_twin(model, config, shifted, there, masked)[:, -1]
    torch.testing.assert_close(model.encode(packed(items, valid)), expected, rtol=1e-9, atol=1e-9)


def test_short_histories_are_encoded_without_spare_rows() -> None:
    model, _ = make()
    items, valid, _ = batch([1, 4, 2])
    encoded = model.encode(packed(items, valid))
    for row in range(3):
        alone = model.encode(packed(items[row : row + 1], valid[row : row + 1]))
        torch.testing.assert_close(encoded[row : row + 1], alone, rtol=1e-9, atol=1e-9)
    assert encoded.shape == (3, D + 1)


def test_states_do_not_depend_on_what_else_is_in_the_batch() -> None:
    model, _ = make()
    items, valid, masked = batch([6, 1, 0, 3])
    together = model.states(packed(items, valid, masked))
    rows = packed(items, valid).rows
    for row in (0, 1, 3):
        alone = slice(row, row + 1)
        single = model.states(packed(items[alone], valid[alone], masked[alone]))
        torch.testing.assert_close(together[rows == row], single, rtol=1e-9, atol=1e-9)


def test_no_softmax_is_empty() -> None:
    """Rows of spare histories are in the grid of a GPU, and a softmax over nothing is not a number."""
    keys = grids._filled_cells(torch.tensor([0, 2, 3]), 3)
    assert keys.shape == (3, 1, 1, 3)
    assert keys.int().squeeze().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_histories_without_items_are_finite() -> None:
    model, _ = make()
    for lengths in ([0, 0], [3, 0, 2]):
        model.zero_grad()
        hidden = model.states(packed(*batch(lengths)))
        hidden.sum().backward()
        assert hidden.shape == (sum(lengths), D + 1)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("head", "head_bias"), HEADS)
def test_the_embeddings_are_a_parameter_and_the_bias_its_last_column(head: str, head_bias: bool) -> None:
    model, _ = make(head=head, head_bias=head_bias)
    table = model.item_embeddings()
    assert table.shape == (V, D + head_bias)
    assert any(table is parameter for parameter in model.parameters()), "no copy"
    assert (table is model.get_parameter("item_table")) == (head == "tied")
    items, valid, masked = batch([4, 5])
    windows = packed(items, valid, masked)
    before = model.states(windows)
    if head_bias:
        assert (before[:, D] == 1).all()
        with torch.no_grad():
            table[:, D] += 1
        assert torch.equal(model.states(windows), before), "a bias is no part of the input"
        torch.testing.assert_close(before @ table.T, before[:, :D] @ table[:, :D].T + table[:, D])


def test_initialization_follows_its_law_and_the_seed() -> None:
    for head in ("untied", "tied"):
        config = Bert4rec(name="bert4rec", max_length=50, hidden_size=32, head=head)
        torch.manual_seed(1)
        model = models.build(config, 3000)
        torch.manual_seed(1)
        again = models.build(config, 3000)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        table = model.item_embeddings().detach()
        assert float(table[:, :32].std()) == pytest.approx((2 / (3000 + 32)) ** 0.5, rel=0.03)
        assert float(model.get_parameter("blocks.0.widen.weight").detach().std()) == pytest.approx(
            (2 / (32 * 5)) ** 0.5, rel=0.05
        )
        assert float(model.get_parameter("mask_vector").detach().std()) == pytest.approx((2 / 33) ** 0.5, rel=0.5)
        bias = table[:, 32]
        if head == "tied":
            assert float(bias.std()) == pytest.approx(0.01, rel=0.05)
        else:
            assert float(bias.abs().max()) == pytest.approx(32**-0.5, rel=0.01)
            assert float(bias.std()) == pytest.approx(32**-0.5 / 3**0.5, rel=0.05)


def test_the_norm_divides_by_the_unbiased_deviation_plus_epsilon() -> None:
    norm = LayerNorm(5).double()
    norm.weight.data.uniform_(0.5, 2)
    norm.bias.data.normal_()
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    expected = norm.weight * (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6) + norm.bias
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    # Deviations near epsilon, where its place matters.
    small = (1e-6 * torch.randn(4, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(norm, (small,), eps=1e-10, atol=1e-2, rtol=1e-4)
    assert torch.autograd.gradcheck(lambda *a: torch.func.functional_call(norm, {"weight": a[1], "bias": a[2]}, a[0]),
                                    (x, norm.weight, norm.bias))  # fmt: skip
    constant = torch.full((2, 5), 3.0, dtype=torch.float64, requires_grad=True)
    norm(constant).sum().backward()
    assert torch.equal(norm(constant), norm.bias.expand(2, 5))
    assert constant.grad is not None
    assert torch.isfinite(constant.grad).all()


def test_dropout_acts_in_all_places_while_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = packed(*batch([6, 6, 6]))
    model, _ = make(dropout=0.5)
    model.eval()
    torch.testing.assert_close(model.states(windows), model.states(windows))
    shapes: list[int] = []
    dropout, attend = F.dropout, F.scaled_dot_product_attention

    def recorded_dropout(x: Tensor, p: float, training: bool) -> Tensor:
        assert p == 0.5
        shapes.append(x.shape[1])
        return dropout(x, p, training)

    def recorded_attention(*args: Tensor, attn_mask: Tensor, is_causal: bool, dropout_p: float) -> Tensor:
        assert (dropout_p, is_causal) == (0.5, False)
        shapes.append(0)
        return attend(*args, attn_mask=attn_mask, is_causal=is_causal, dropout_p=dropout_p)

    monkeypatch.setattr(F, "dropout", recorded_dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded_attention)
    model.train()
    hidden = model.states(windows)
    assert shapes == [D] + 2 * [0, D, 4 * D, D, D]
    assert (hidden[:, D] == 1).all(), "never the bias's one"
    assert not torch.equal(hidden, model.states(windows))
