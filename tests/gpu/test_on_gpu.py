"""What only a GPU can show: the same values as on the CPU, the same run twice, and peaks that mean what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seqrec import config, losses, memory
from seqrec.data.batches import CausalBatches
from seqrec.data.negatives import Negatives, NegativeSampler
from seqrec.data.splits import leave_one_out
from seqrec.data.tables import Interactions, Split
from seqrec.train import train

pytestmark = pytest.mark.gpu

LOSSES: dict[str, dict[str, Any]] = {
    "ce": {"chunk_bytes": 2**20},
    "cce": {"block_items": 512},
    "bce": {"n_negatives": 33},
    "bce_plus": {"n_negatives": 33, "sampling": "popularity"},
    "gbce": {"n_negatives": 33},
    "ce_minus": {"n_negatives": 65},
    "cce_minus": {"n_negatives": 65, "correction": "log_q", "sampling": "popularity"},
    "sce": {"n_buckets": 17, "bucket_size_x": 40, "bucket_size_y": 77},
    "rece": {"n_buckets": 23, "n_extra_chunks": 1, "rounds": 3},
}


@pytest.fixture(scope="module")
def split() -> Split:
    """400 users with 3 to 60 items of 3,001; an item mostly follows its neighbour: there is something to learn."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 61, 400)
    users = np.repeat(np.arange(400), lengths)
    steps = rng.integers(1, 4, len(users)) * rng.choice([1, 1, 1, 50], len(users))
    items = (rng.integers(0, 3001, 400)[users] + np.cumsum(steps)) % 3001
    order = np.concatenate([np.arange(length) for length in lengths])
    return leave_one_out(Interactions(users, items, order, False, "synthetic", "0" * 64))


def run_of(name: str, **training: Any) -> config.Run:
    tree: dict[str, Any] = {
        "data": {"path": "synthetic"},
        "model": {"name": "sasrec", "max_length": 32, "hidden_size": 32},
        "loss": {"name": name, **LOSSES[name]},
        "train": {"batch_size": 64, "epochs": 3, **training},
    }
    return config.parse(tree)


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_the_cpus(name: str, split: Split) -> None:
    loss = losses.build(run_of(name).loss, split.n_items)
    generator = torch.Generator().manual_seed(3)
    batches = CausalBatches(split.train, max_length=32, batch_size=64, drop_last=False, seed=1, device="cpu")
    batch = next(iter(batches.epoch(1)))
    hidden = torch.randn(len(batch.targets), 32, generator=generator)
    items = torch.randn(split.n_items, 32, generator=generator) * 0.3
    negatives: Negatives | None = None
    if loss.request is not None:
        sampler = NegativeSampler(loss.request, split.train, split.n_items, split.item_counts)
        negatives = sampler.draw(batch.targets, batch.rows, batch.users, generator)
    fixed: dict[str, torch.Tensor] = {}
    if name == "sce":
        fixed["centres"] = torch.randn(17, 32, generator=generator)
    if name == "rece":
        fixed["projections"] = torch.randn(3, 23, 32, generator=generator)

    def value_and_gradients(device: str) -> list[torch.Tensor]:
        x, w = (tensor.detach().to(device).requires_grad_() for tensor in (hidden, items))
        value = loss(
            x, w, batch.targets.to(device), _moved(negatives, device), **{k: t.to(device) for k, t in fixed.items()}
        )
        value.backward()
        return [tensor.detach().cpu() for tensor in (value, x.grad, w.grad) if tensor is not None]

    for on_cpu, on_gpu in zip(value_and_gradients("cpu"), value_and_gradients("cuda"), strict=True):
        assert torch.isfinite(on_gpu).all()
        assert (on_cpu - on_gpu).norm() <= 2e-5 * on_cpu.norm() + 1e-12


def _moved(negatives: Negatives | None, device: str) -> Negatives | None:
    if negatives is None:
        return None
    group, log_q = (None if t is None else t.to(device) for t in (negatives.group, negatives.log_q))
    return Negatives(negatives.ids.to(device), group, log_q)


def test_draws_on_the_device_keep_their_laws(split: Split) -> None:
    loss = losses.build(run_of("bce").loss, split.n_items)
    assert loss.request is not None
    sampler = NegativeSampler(loss.request, split.train, split.n_items, split.item_counts, "cuda")
    batches = CausalBatches(split.train, max_length=32, batch_size=64, drop_last=False, seed=1, device="cuda")
    batch = next(iter(batches.epoch(1)))
    draws = [
        sampler.draw(batch.targets, batch.rows, batch.users, torch.Generator("cuda").manual_seed(5)).ids
        for _ in range(2)
    ]
    assert torch.equal(*draws)
    users = batch.users[batch.rows].tolist()
    for user, ids in zip(users, draws[0].tolist(), strict=True):
        history = split.train.items[split.train.offsets[user] : split.train.offsets[user + 1]]
        assert len(set(ids)) == len(ids)
        assert not set(ids) & set(history.tolist())


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_learns_and_its_peaks_are_measured_apart(name: str, split: Split) -> None:
    report = train(run_of(name, epochs=4), split=split, device="cuda")
    losses_seen = [epoch.metrics["train/loss"] for epoch in report.history]
    assert losses_seen[-1] < losses_seen[0]
    assert 0 < report.metrics["memory/peak_gib"] <= report.metrics["memory/reserved_gib"]
    assert report.metrics["memory/evaluation_gib"] > 0
    weights = 4 * memory.n_parameters(run_of(name).model, split.n_items)
    assert report.metrics["memory/peak_gib"] * 2**30 > 3 * weights
    state = memory.state_bytes(run_of(name), split.statistics)
    assert report.metrics["memory/state_gib"] * 2**30 == pytest.approx(state, rel=1e-6)


def test_what_one_run_leaves_behind_does_not_count_for_the_next(split: Split) -> None:
    alone = train(run_of("sce", epochs=1), split=split, device="cuda").metrics["memory/peak_gib"]
    hog = torch.empty(2**28, device="cuda")
    del hog
    train(run_of("ce", epochs=1), split=split, device="cuda")
    after = train(run_of("sce", epochs=1), split=split, device="cuda").metrics["memory/peak_gib"]
    assert after == pytest.approx(alone, rel=0.02)


def test_running_out_of_memory_is_torchs_own_error_and_spares_the_process(split: Split) -> None:
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            train(run_of("ce", epochs=1), split=split, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert train(run_of("ce", epochs=1), split=split, device="cuda").epochs == 1
