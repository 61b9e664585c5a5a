"""A loss by kernels against the same loss in plain PyTorch, on the batch of a captured step: with spare positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrec import config, losses
from seqrec.data.batches import Capacity
from seqrec.data.cloze import ClozeBatches
from seqrec.data.negatives import Negatives
from seqrec.data.tables import Sequences
from seqrec.kernels.draws import alias_table, drawn
from seqrec.losses import fused
from seqrec.losses.rece import Rece
from seqrec.losses.sce import Sce

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings(
    "ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning"  # numpy, which interprets kernels here
)
N, SPARE, V, D, K = 41, 6, 67, 24, 5
USERS = 9

LOSSES: dict[str, dict[str, Any]] = {
    "ce": {"name": "ce"},
    "cce": {"name": "cce"},
    "bce": {"name": "bce", "n_negatives": K},
    "gbce": {"name": "gbce", "n_negatives": K, "gbce_t": 0.75},
    "bce_plus": {"name": "bce_plus", "n_negatives": K},
    "bce_plus, popular": {"name": "bce_plus", "n_negatives": K, "sampling": "popularity"},
    "ce_minus": {"name": "ce_minus", "n_negatives": K},
    "ce_minus, position": {"name": "ce_minus", "n_negatives": K, "negatives_scope": "position"},
    **{
        f"ce_minus, {scope}, {sampling}, {correction}": {
            "name": "ce_minus", "n_negatives": K, "negatives_scope": scope, "group_size": 8, "with_replacement": True,
            "exclude_history": False, "sampling": sampling, "correction": correction,
        }
        for scope, sampling, correction in (
            ("group", "uniform", "log_count"), ("batch", "in_batch", "log_q"), ("group", "uniform", "log_q"),
            ("user", "popularity", "log_q"),
        )
    },
    "cce_minus, popular": {
        "name": "cce_minus", "n_negatives": K, "sampling": "popularity", "correction": "log_q"
    },
    "rece": {"name": "rece", "n_buckets": 6, "rounds": 2},
    "sce": {"name": "sce", "n_buckets": 7, "bucket_size_x": 11, "bucket_size_y": 13},
}  # fmt: skip


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """States, items, targets, weights of N real and SPARE spare positions, and their users, in order."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(N + SPARE, D, generator=generator)
    items = torch.randn(V, D, generator=generator) * 0.5
    targets = torch.randint(V, (N + SPARE,), generator=generator)
    users = torch.randint(USERS, (N + SPARE,), generator=generator).sort().values
    weights = torch.full((N + SPARE,), 1 / N)
    weights[N:] = 0
    return tuple(one.to(DEVICE) for one in (hidden, items, targets, weights, users))


def negatives_of(loss: losses.Loss, users: Tensor) -> Negatives | None:
    request = loss.request
    if request is None:
        return None
    n = len(users)
    group = {"position": None, "user": users, "batch": torch.zeros_like(users), "group": None}[request.scope]
    rows = n if request.scope == "position" else USERS if request.scope == "user" else 1
    if request.scope == "group":
        rows = -(-n // request.group_size)
        group = torch.arange(n, device=DEVICE) % rows
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(V, (rows, request.n), generator=generator).to(DEVICE)
    log_q = None
    if request.sampling != "uniform":
        log_q = torch.rand(V, generator=generator).add_(0.1).log_softmax(0).to(DEVICE)
    return Negatives(ids, group, log_q, n)


def fixed(loss: losses.Loss) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    match loss:
        case Rece():
            return {"projections": torch.randn(loss.rounds, loss.n_buckets, D, generator=generator).to(DEVICE)}
        case Sce():
            return {"centres": torch.randn(loss.n_buckets, D, generator=generator).to(DEVICE)}
    return {}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spare", [0, SPARE])
def test_value_and_gradients_are_the_eager_ones(name: str, spare: int) -> None:
    hidden, items, targets, weights, users = (one[: N + spare] if len(one) == N + SPARE else one for one in problem())
    tree = {"data": {"path": "x"}, "model": {"name": "sasrec"}, "loss": LOSSES[name]}
    configuration = config.parse(tree).loss
    eager, kernel = losses.build(configuration, V), fused.build(configuration, V, torch.float32)
    draws = negatives_of(eager, users)
    assert kernel.capturable
    assert kernel.request == eager.request
    # Outside of a captured step there are no weights.
    given = weights if spare else None
    found = kernel.value_and_gradients(hidden, items, targets, draws, None, given, **fixed(eager))
    if eager.capturable:
        wanted = eager.value_and_gradients(hidden, items, targets, draws, None, weights)
    else:
        wanted = eager.value_and_gradients(hidden[:N], items, targets[:N], None, None, **fixed(eager))
        assert not found[1][N:].any()
        found = found[0], found[1][:N], found[2]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


def test_draws_of_users_where_spare_targets_lie_anywhere() -> None:
    """Spare targets of masked batches are of the first users' histories, and come behind the last user's."""
    n_users, length = 12, 8
    history = np.arange(n_users * length) * 7 % V
    train = Sequences(history.astype(np.int32), np.arange(0, len(history) + 1, length), np.arange(n_users))
    batches = ClozeBatches(
        train, max_length=length, batch_size=n_users, drop_last=False, seed=1, device=DEVICE, mask_probability=0.3
    )
    plan = batches.plan(1)
    size = plan.sizes[0]
    batch = batches.gather(plan.users, Capacity(size.positions + 9, size.targets + 11, n_users + 2, length))
    assert (batch.rows.diff() < 0).any()
    M = len(batch.targets)
    hidden, items = torch.randn(M, D, device=DEVICE), torch.randn(V, D, device=DEVICE)
    draws = Negatives(torch.randint(V, (n_users + 2, K), device=DEVICE), batch.rows, None, None)
    tree = {"data": {"path": "x"}, "model": {"name": "sasrec"}, "loss": LOSSES["ce_minus"]}
    configuration = config.parse(tree).loss
    eager, kernel = losses.build(configuration, V), fused.build(configuration, V, torch.float32)
    found, wanted = (
        one.value_and_gradients(hidden, items, batch.targets, draws, None, batch.weights) for one in (kernel, eager)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"sampling": "popularity"}, {"sampling": "popularity", "correction": "log_q"}])
def test_cce_minus_draws_in_the_kernel_what_its_generator_says(options: dict[str, str]) -> None:
    hidden, items, targets, weights, _ = problem()
    loss = {"name": "cce_minus", "n_negatives": K, **options}
    configuration = config.parse({"data": {"path": "x"}, "model": {"name": "sasrec"}, "loss": loss}).loss
    counts = np.arange(V) % 11
    eager, kernel = losses.build(configuration, V), fused.build(configuration, V, torch.float32, counts).to(DEVICE)
    assert kernel.request is None
    popularity = log_q = None
    if options:
        popularity = alias_table(counts.tolist()).to(DEVICE)
        log_q = torch.from_numpy(np.log(counts / counts.sum())).float().to(DEVICE)
    values = []
    for seed in (1, 1, 2):
        found = kernel.value_and_gradients(
            hidden, items, targets, None, torch.Generator(DEVICE).manual_seed(seed), weights
        )
        values.append(float(found[0]))
        key = torch.randint(2**62, (1,), generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)
        ids = drawn(key, len(hidden), K, V, popularity)
        wanted = eager.value_and_gradients(hidden, items, targets, Negatives(ids, log_q=log_q), None, weights)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
    assert values[0] == values[1] != values[2]


def test_random_projections_and_centres_come_from_the_generator() -> None:
    hidden, items, targets, weights, _ = problem()
    for name in ("rece", "sce"):
        for changed in ({}, {"mix_x": True}) if name == "sce" else ({},):
            tree = {"data": {"path": "x"}, "model": {"name": "sasrec"}, "loss": LOSSES[name] | changed}
            kernel = fused.build(config.parse(tree).loss, V, torch.float32)
            first, again, other = (
                float(
                    kernel.value_and_gradients(
                        hidden, items, targets, None, torch.Generator(DEVICE).manual_seed(seed), weights
                    )[0]
                )
                for seed in (1, 1, 2)
            )
            assert first == pytest.approx(again, rel=1e-6)
            assert first != pytest.approx(other, rel=1e-6)


def test_the_covered_share_lies_where_it_lay() -> None:
    """Steps captured in several shapes write it to one place, which outlives them."""
    hidden, items, targets, weights, _ = problem()
    tree = {"data": {"path": "x"}, "model": {"name": "sasrec"}, "loss": LOSSES["sce"] | {"n_buckets": 1}}
    kernel = fused.build(config.parse(tree).loss, V, torch.float32)
    assert isinstance(kernel, fused.FusedSce)
    places = []
    for n in (N + SPARE, 22):
        count = min(n, N)
        kernel.value_and_gradients(hidden[:n], items, targets[:n], None, None, weights[:n])
        assert kernel.covered_share is not None
        assert kernel.covered_share.item() == pytest.approx(11 / count)
        places.append(kernel.covered_share.data_ptr())
    assert places[0] == places[1]


@pytest.mark.parametrize("name", ["ce", "ce_minus", "rece", "sce"])
def test_a_batch_without_positions(name: str) -> None:
    hidden, items, targets, _, users = problem()
    tree = {"data": {"path": "x"}, "model": {"name": "sasrec"}, "loss": LOSSES[name]}
    configuration = config.parse(tree).loss
    kernel = fused.build(configuration, V, torch.float32)
    draws = negatives_of(losses.build(configuration, V), users[:0])
    value, to_hidden, to_items = kernel.value_and_gradients(hidden[:0], items, targets[:0], draws)
    assert value == 0
    assert to_hidden.shape == (0, D)
    assert not to_items.any()


def test_where_kernels_cannot_run() -> None:
    cuda, ce, rece = torch.device("cuda"), config.Ce(name="ce"), config.Rece(name="rece", n_buckets=16_384)
    assert fused.why_not(torch.device("cpu"), 64, torch.bfloat16, ce) == "a CUDA device"
    assert "precision bf16" in str(fused.why_not(cuda, 64, torch.float32, ce))
    # BERT4Rec's bias is one more.
    assert fused.why_not(cuda, 513, torch.bfloat16, ce) == "item embeddings of at most 512 numbers"
    assert fused.why_not(cuda, 64, torch.bfloat16, rece) == "loss.n_buckets <= 16383"
    sce = config.Sce(name="sce", n_buckets=3, bucket_size_x=5, bucket_size_y=10**6 + 1)
    assert fused.why_not(cuda, 64, torch.bfloat16, sce) == "loss.bucket_size_y <= 1000000"
