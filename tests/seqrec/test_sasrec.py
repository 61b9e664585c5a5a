"""SASRec against a slow twin on padded tensors, built from torch.nn.MultiheadAttention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrec import models
from seqrec.config import Sasrec
from seqrec.data.batches import Windows
from seqrec.models import SequenceModel

V, L, D = 11, 6, 8


def make(**changes: Any) -> tuple[SequenceModel, Sasrec]:
    config = Sasrec(**{"name": "sasrec", "max_length": L, "hidden_size": D, "n_heads": 2, "dropout": 0.0, **changes})
    torch.manual_seed(3)
    model = models.build(config, V)
    for parameter in model.parameters():  # biases away from zero, so that a forgotten one shows
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, config


def batch(lengths: list[int], width: int = L) -> tuple[Tensor, Tensor, Windows]:
    """Histories as the twin reads them, left-padded to `width`, and as the model does."""
    valid = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    items = torch.randint(0, V, (len(lengths), width), generator=torch.Generator().manual_seed(7)) * valid
    return items, valid, packed(items, valid)


def packed(items: Tensor, valid: Tensor) -> Windows:
    rows, places = valid.nonzero().T
    lengths = valid.sum(1)
    return Windows(items[valid], rows, places, F.pad(lengths.cumsum(0), (1, 0)), int(lengths.max()))


def moved(windows: Windows, device: str) -> Windows:
    tensors = (windows.items, windows.rows, windows.places, windows.offsets)
    return Windows(*(tensor.to(device) for tensor in tensors), windows.longest)


def slow_twin(model: SequenceModel, config: Sasrec, items: Tensor, valid: Tensor) -> Tensor:
    """(B, T, D): the published forward pass, every pad computed and zeroed again."""
    weights = model.state_dict()
    T = items.shape[1]

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (D,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-8)

    mask = valid.unsqueeze(2).float()
    x = (weights["item_table"][items] * D**0.5 + weights["position_table"][-T:]) * mask
    forbidden = torch.ones(T, T, dtype=torch.bool).triu(1).repeat(len(items), 1, 1)
    if config.mask_padding:
        forbidden |= ~valid[:, None, :] & ~torch.eye(T, dtype=torch.bool)  # a pad row keeps itself: no empty softmax
    for number in range(config.n_blocks):
        name = f"blocks.{number}"
        attention = nn.MultiheadAttention(D, config.n_heads, batch_first=True)
        attention.load_state_dict(part(f"{name}.attention."))
        q = norm(x, f"{name}.attention_norm")
        x = q + attention(q, x, x, attn_mask=forbidden.repeat_interleave(config.n_heads, 0))[0]
        x = norm(x, f"{name}.feed_forward_norm")
        w = part(f"{name}.feed_forward.")
        x = x + F.linear(F.relu(F.linear(x, w["first.weight"], w["first.bias"])), w["second.weight"], w["second.bias"])
        x = x * mask
    return norm(x, "norm")


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("n_heads", [1, 2])
def test_states_equal_the_padded_twins(mask_padding: bool, n_heads: int) -> None:
    model, config = make(mask_padding=mask_padding, n_heads=n_heads)
    items, valid, windows = batch([6, 1, 3, 0, 5])
    with torch.no_grad():
        torch.testing.assert_close(
            model.states(windows), slow_twin(model, config, items, valid)[valid], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("mask_padding", [False, True])
def test_short_and_long_histories_are_not_mixed_up(mask_padding: bool) -> None:
    """Lengths on every side of those that share a grid."""
    model, config = make(mask_padding=mask_padding, max_length=40)
    items, valid, windows = batch([40, 3, 9, 0, 33, 8, 1, 32, 20], width=40)
    with torch.no_grad():
        torch.testing.assert_close(
            model.states(windows), slow_twin(model, config, items, valid)[valid], rtol=1e-5, atol=1e-5
        )


@pytest.mark.gpu
@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_gpu_computes_what_the_cpu_does(mask_padding: bool) -> None:
    model, _ = make(mask_padding=mask_padding, max_length=40)
    _, _, windows = batch([40, 3, 9, 0, 33, 8, 1, 32, 20], width=40)
    cpu = model.states(windows)
    weight = torch.randn_like(cpu)
    (cpu * weight).sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    model.cuda()
    gpu = model.states(moved(windows, "cuda"))
    (gpu * weight.cuda()).sum().backward()
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert expected[name] is not None
        torch.testing.assert_close(parameter.grad.cpu(), expected[name], rtol=1e-3, atol=1e-3, msg=name)


def test_pads_take_softmax_weight_only_as_published() -> None:
    items, valid, windows = batch([3])
    published, config = make()
    masked, _ = make(mask_padding=True)
    twin = slow_twin(published, config, items, valid)
    assert (published.states(windows) - twin[valid]).abs().max() < 1e-5
    assert (masked.states(windows) - twin[valid]).abs().max() > 1e-2


@pytest.mark.parametrize("mask_padding", [False, True])
def test_a_history_is_encoded_as_its_last_state(mask_padding: bool) -> None:
    model, config = make(mask_padding=mask_padding)
    items, valid, windows = batch([6, 2, 1, 4])
    torch.testing.assert_close(
        model.encode(windows), slow_twin(model, config, items, valid)[:, -1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("mask_padding", [False, True])
def test_a_state_depends_on_its_own_past_only(mask_padding: bool) -> None:
    model, _ = make(mask_padding=mask_padding)
    items, valid, windows = batch([6, 4])
    before = model.states(windows)
    items[:, 4] = (items[:, 4] + 1) % V
    change = (model.states(packed(items, valid)) - before).abs().amax(1)
    assert (change[windows.places < 4] == 0).all()
    assert (change[windows.places >= 4] > 0).all()


def test_the_last_item_always_stands_at_the_last_place() -> None:
    model, _ = make(mask_padding=True)
    model.states(batch([1])[2]).sum().backward()
    touched = model.get_parameter("position_table").grad.abs().sum(1).nonzero().flatten()
    assert touched.tolist() == [L - 1]


@pytest.mark.parametrize("mask_padding", [False, True])
def test_no_pad_reaches_a_gradient(mask_padding: bool) -> None:
    """The rows of absent items get no gradient: not even of item 0."""
    model, _ = make(mask_padding=mask_padding)
    items, valid, _ = batch([2, 3])
    items = torch.where(valid, items.clamp(min=1), torch.zeros_like(items))
    model.states(packed(items, valid)).square().sum().backward()
    gradient = model.item_embeddings().grad
    assert gradient is not None
    assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == set(items[valid].tolist())


def test_the_gradient_equals_the_padded_twins() -> None:
    """Pads as keys pull on the biases of the projections; a packed computation could forget that."""
    for mask_padding in (False, True):
        model, config = make(mask_padding=mask_padding)
        items, valid, windows = batch([3, 6, 1])
        weight = torch.randn(len(windows.items), D)
        bias = model.get_parameter("blocks.0.attention.in_proj_bias")
        (model.states(windows) * weight).sum().backward()
        assert bias.grad is not None
        step, at = 1e-3, 2 * D + 3  # of the value projection
        ends = []
        for sign in (1, -1):
            bias.data[at] += sign * step
            ends.append(float((slow_twin(model, config, items, valid).detach()[valid].double() * weight).sum()))
            bias.data[at] -= sign * step
        assert float(bias.grad[at]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_histories_without_items_are_finite(mask_padding: bool) -> None:
    model, _ = make(mask_padding=mask_padding)
    hidden = model.states(batch([0, 0])[2])
    hidden.sum().backward()
    assert hidden.shape == (0, D)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("initialization", "ffn_dropout"), [("xavier_uniform", "before_relu"), ("xavier_normal", "after_relu")]
)
def test_published_variants_have_the_published_parameters(initialization: str, ffn_dropout: str) -> None:
    model, config = make(initialization=initialization, ffn_dropout=ffn_dropout, n_blocks=3)
    attention, feed_forward, norms = 4 * D * D + 4 * D, 2 * D * D + 2 * D, 4 * D
    expected = V * D + L * D + config.n_blocks * (attention + feed_forward + norms) + 2 * D
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model.item_embeddings().shape == (V, D)


def test_initialization_follows_its_law_and_the_seed() -> None:
    config = Sasrec(name="sasrec", max_length=50, hidden_size=32)
    torch.manual_seed(1)
    uniform = models.build(config, 500)
    torch.manual_seed(1)
    again = models.build(config, 500)
    assert all(torch.equal(a, b) for a, b in zip(uniform.parameters(), again.parameters(), strict=True))
    normal = models.build(config.model_copy(update={"initialization": "xavier_normal"}), 500)
    deviation = (2 / (500 + 32)) ** 0.5
    assert uniform.item_embeddings().abs().max() <= deviation * 3**0.5
    assert normal.item_embeddings().abs().max() > deviation * 3**0.5
    for model in (uniform, normal):
        assert float(model.item_embeddings().detach().std()) == pytest.approx(deviation, rel=0.03)
        # Fused projections share one fan, as in torch.nn.MultiheadAttention.
        in_proj = model.get_parameter("blocks.0.attention.in_proj_weight")
        assert float(in_proj.detach().std()) == pytest.approx((2 / (4 * 32)) ** 0.5, rel=0.05)
        assert not model.get_parameter("blocks.0.attention.in_proj_bias").any()
        assert model.get_parameter("blocks.0.feed_forward.first.bias").abs().max() <= 32**-0.5


@pytest.mark.parametrize("mask_padding", [False, True])
def test_dropout_acts_in_all_places_while_training_only(mask_padding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, windows = batch([6, 6, 6])
    model, _ = make(mask_padding=mask_padding, dropout=0.5)
    model.eval()
    torch.testing.assert_close(model.states(windows), model.states(windows))
    rates: list[float] = []
    dropout, attend = F.dropout, F.scaled_dot_product_attention

    def recorded_dropout(x: Tensor, p: float, training: bool) -> Tensor:
        rates.append(p)
        return dropout(x, p, training)

    def recorded_attention(*args: Tensor, attn_mask: None, is_causal: bool, dropout_p: float) -> Tensor:
        rates.append(dropout_p)
        return attend(*args, attn_mask=attn_mask, is_causal=is_causal, dropout_p=dropout_p)

    monkeypatch.setattr(F, "dropout", recorded_dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded_attention)
    model.train()
    model.states(windows)
    assert rates == [0.5] * (1 + 2 * 3)
