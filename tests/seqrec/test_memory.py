"""The closed forms against counted parameters, saved activations and the allocations of real steps on the CPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from seqrec import config, losses, memory, models
from seqrec.data.batches import Batches, CausalBatches
from seqrec.data.cloze import ClozeBatches
from seqrec.data.negatives import NegativeSampler
from seqrec.data.tables import Sequences, Statistics
from seqrec.engine import Engine

LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "cce": {"block_items": 512},
    "bce": {"n_negatives": 64},
    "bce_plus": {"n_negatives": 64},
    "gbce": {"n_negatives": 128},
    "ce_minus": {"n_negatives": 128},
    "cce_minus": {"n_negatives": 64},
    "sce": {"n_buckets": 70, "bucket_size_x": 70, "bucket_size_y": 64, "mix_x": True},
    "rece": {"n_buckets": 70, "rounds": 8},
}


def make_run(loss: str = "ce", *, batch_size: int = 64, keys: dict | None = None, **model: Any) -> config.Run:
    return config.parse(
        {
            "data": {"path": "made up"},
            "model": {"name": "sasrec", "max_length": 32, "hidden_size": 32, "dropout": 0.0} | model,
            "loss": {"name": loss} | LOSSES[loss] | (keys or {}),
            "train": {"batch_size": batch_size, "engine": "eager"},
        }
    )


def make_data(n_items: int = 2000, n_users: int = 128, mean: int = 20) -> tuple[Sequences, Statistics]:
    random = np.random.default_rng(0)
    lengths = random.poisson(mean, n_users).clip(2)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = random.integers(0, n_items, offsets[-1]).astype(np.int32)
    sizes, users = np.unique(lengths, return_counts=True)
    histogram = tuple(zip(sizes.tolist(), users.tolist(), strict=True))
    statistics = Statistics("made up", "0", n_users, int(offsets[-1]), n_items, n_users, histogram)
    return Sequences(items, offsets, np.arange(n_users)), statistics


def predict(run: config.Run, **data: int) -> memory.Prediction:
    return memory.predict_peak(run, make_data(**data)[1])


def test_importing_it_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, seqrec.memory; print([name for name in ('torch', 'numpy', 'ray') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


BERT4REC = {"name": "bert4rec", "n_heads": 1}
TIED = {**BERT4REC, "head": "tied"}


@pytest.mark.parametrize("head", [{}, BERT4REC, TIED, BERT4REC | {"head_bias": False}, TIED | {"head_bias": False}])
@pytest.mark.parametrize(
    "model", [{}, {"n_blocks": 1, "hidden_size": 6, "n_heads": 3}, {"max_length": 7, "n_blocks": 4}]
)
def test_parameters_are_counted_exactly(model: dict, head: dict) -> None:
    run = make_run(**(head | model))
    assert memory.n_parameters(run.model, 123) == sum(p.numel() for p in models.build(run.model, 123).parameters())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_peak_is_the_sum_of_its_parts(loss: str) -> None:
    prediction = predict(make_run(loss))
    assert prediction.peak_bytes == sum(prediction.parts.values())
    assert prediction.moment in ("draw", "loss", "attention", "embedding")
    assert all(part >= 0 for part in prediction.parts.values())
    parameters = memory.n_parameters(make_run().model, 2000)
    assert prediction.parts["weights"] == 4 * parameters
    assert prediction.parts["optimiser"] == 8 * parameters


def batches_of(run: config.Run, sequences: Sequences) -> Batches:
    settings: dict[str, Any] = {"batch_size": run.train.batch_size, "drop_last": True, "seed": 0, "device": "cpu"}
    settings["max_length"] = run.model.max_length
    if isinstance(run.model, config.Bert4rec):
        return ClozeBatches(sequences, mask_probability=run.model.mask_probability, **settings)
    return CausalBatches(sequences, **settings)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"mask_padding": True},
        {"n_blocks": 3, "n_heads": 4},
        {"max_length": 12, "n_blocks": 1},
        BERT4REC,
        TIED | {"n_blocks": 3, "n_heads": 4, "head_bias": False},
        BERT4REC | {"max_length": 12, "n_blocks": 1},
    ],
    ids=["pads are keys", "pads masked", "blocks and heads", "short", "bert4rec", "tied", "short bert4rec"],
)
def test_activations_are_what_autograd_saves(model: dict) -> None:
    run, (sequences, statistics) = make_run(**model), make_data()
    encoder = models.build(run.model, 2000)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = next(iter(batches_of(run, sequences).epoch(0)))
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = encoder.states(batch.windows)
    measured = sum(saved.values()) + hidden.nbytes
    predicted = memory.activations(run.model, memory.step_shapes(run, statistics))
    # The prediction is for the largest of many batches.
    assert 0.95 < predicted / measured < 1.15


def measured_peak(run: config.Run, sequences: Sequences, n_items: int) -> int:
    """Bytes that one epoch of training has allocated at most, model and optimiser included."""

    def train() -> None:
        model = models.build(run.model, n_items)
        loss = losses.build(run.loss, n_items)
        counts = np.bincount(sequences.items, minlength=n_items)
        sampler = NegativeSampler(loss.request, sequences, n_items, counts, "cpu") if loss.request else None
        Engine(model, loss, sampler, batches_of(run, sequences), run.train, torch.device("cpu")).run_epoch(1)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        train()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


SCOPES = [
    ("ce_minus", {"negatives_scope": scope, "exclude_history": scope == "user"})
    for scope in ("user", "position", "group", "batch")
]
CASES = [(name, {}) for name in LOSSES if name != "ce_minus"] + SCOPES


@pytest.mark.parametrize("tile_bytes", [2**19, 2**24], ids=["small tiles", "large tiles"])
@pytest.mark.parametrize(
    ("loss", "keys"), CASES, ids=[f"{name} {' '.join(map(str, keys.values()))}" for name, keys in CASES]
)
def test_the_prediction_is_near_what_real_steps_allocate(
    monkeypatch: pytest.MonkeyPatch, loss: str, keys: dict, tile_bytes: int
) -> None:
    for module in ("losses.candidates", "losses.ce", "losses.sce", "losses.rece", "memory.losses"):
        monkeypatch.setattr(f"seqrec.{module}.TILE_BYTES", tile_bytes)
    for module in ("data.negatives", "memory.losses"):
        monkeypatch.setattr(f"seqrec.{module}.DRAW_ELEMENTS", tile_bytes // 8)
    monkeypatch.setattr("seqrec.memory.MATRIX_WORKSPACE", 0)
    run, (sequences, statistics) = make_run(loss, keys=keys, mask_padding=True), make_data()
    assert 0.85 < memory.predict_peak(run, statistics).peak_bytes / measured_peak(run, sequences, 2000) < 1.25


@pytest.mark.parametrize(
    ("loss", "model", "batch_size", "peaks_at"),
    [
        ("ce", BERT4REC, 8, "loss"),
        ("ce", BERT4REC, 128, "feed_forward"),
        ("ce", TIED, 128, "feed_forward"),
        ("ce_minus", BERT4REC | {"head_bias": False, "n_heads": 2}, 64, "loss"),
        ("rece", TIED | {"mask_probability": 0.5}, 64, "loss"),
        ("ce", TIED, 1, "embedding"),
        ("ce", BERT4REC, 1, "embedding"),
    ],
)
def test_the_prediction_for_bert4rec_is_near_what_real_steps_allocate(
    monkeypatch: pytest.MonkeyPatch, loss: str, model: dict, batch_size: int, peaks_at: str
) -> None:
    monkeypatch.setattr("seqrec.memory.MATRIX_WORKSPACE", 0)
    keys = {"chunk_bytes": 2**20} if loss == "ce" else {}
    run, (sequences, statistics) = make_run(loss, batch_size=batch_size, keys=keys, **model), make_data()
    prediction = memory.predict_peak(run, statistics)
    assert 0.85 < prediction.peak_bytes / measured_peak(run, sequences, 2000) < 1.25
    assert prediction.moment == peaks_at


def test_a_small_model_of_long_histories_peaks_while_its_masks_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.memory.MATRIX_WORKSPACE", 0)
    run = make_run(batch_size=16, **(BERT4REC | {"hidden_size": 4, "max_length": 4, "n_blocks": 1}))
    sequences, statistics = make_data(n_items=50, n_users=60, mean=5000)
    prediction = memory.predict_peak(run, statistics)
    assert prediction.moment == "plan"
    assert 0.85 < prediction.peak_bytes / measured_peak(run, sequences, 50) < 1.25


GROWS: list[tuple[str, dict, dict]] = [
    *((loss, {}, {"batch_size": 128}) for loss in LOSSES),
    *((loss, {}, {"hidden_size": 64}) for loss in LOSSES),
    *((loss, {"n_negatives": 64}, {"n_negatives": 1024}) for loss in LOSSES if "n_negatives" in LOSSES[loss]),
    ("ce", {}, {"max_length": 40, "n_blocks": 3}),
    ("rece", {"rounds": 1}, {"rounds": 64}),
    ("rece", {"n_extra_chunks": 0}, {"n_extra_chunks": 9}),
    ("sce", {"bucket_size_y": 64}, {"bucket_size_y": 1024}),
    ("ce", {"chunk_bytes": 2**16}, {"chunk_bytes": 2**22}),
]


@pytest.mark.parametrize(("loss", "less", "more"), GROWS)
def test_more_work_never_needs_less_memory(loss: str, less: dict, more: dict) -> None:
    def peak(change: dict) -> int:
        kind = config.LOSSES[loss].model_fields
        keys = {key: value for key, value in change.items() if key in kind}
        rest = {key: value for key, value in change.items() if key not in kind}
        return predict(make_run(loss, keys=keys, **rest)).peak_bytes

    assert peak(more) > peak(less)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_larger_catalog_needs_more(loss: str) -> None:
    assert predict(make_run(loss), n_items=20_000).peak_bytes > predict(make_run(loss), n_items=2000).peak_bytes


def test_a_large_catalog_peaks_where_two_gradients_of_its_table_meet() -> None:
    prediction = predict(make_run(batch_size=8, keys={"chunk_bytes": 2**22}), n_items=1_000_000)
    assert prediction.moment == "embedding"
    table = 4 * 1_000_000 * 32
    assert prediction.peak_bytes == pytest.approx(5 * table + memory.MATRIX_WORKSPACE, rel=0.01)


@pytest.mark.parametrize(("model", "widths"), [(BERT4REC, 4 * (32 + 33)), (TIED, 5 * 33)], ids=["untied", "tied"])
def test_a_table_that_only_scores_has_one_gradient(model: dict, widths: int) -> None:
    prediction = predict(make_run(batch_size=8, keys={"chunk_bytes": 2**22}, **model), n_items=1_000_000)
    assert prediction.moment == "embedding"
    assert prediction.peak_bytes == pytest.approx(4 * 1_000_000 * widths + memory.MATRIX_WORKSPACE, rel=0.01)


def test_full_cross_entropy_is_bounded_by_its_chunk_and_not_by_the_logits() -> None:
    shapes = memory.step_shapes(make_run(), make_data(n_items=100_000)[1])
    assert memory.loss_work(config.Ce(name="ce", chunk_bytes=2**20), shapes) <= 2**20
    assert memory.loss_work(config.Ce(name="ce", chunk_bytes=2**16), shapes) == 4 * 100_000, "one row at least"


def test_positions_are_capped_by_the_batch_and_by_the_data() -> None:
    statistics = make_data(mean=500)[1]
    assert memory.step_shapes(make_run(batch_size=10), statistics).positions == 10 * 32
    few = Statistics("made up", "0", 3, 9, 5, 3, ((3, 3),))
    shapes = memory.step_shapes(make_run(batch_size=4096), few)
    assert (shapes.users, shapes.positions, shapes.length) == (3, 6, 32)
    assert memory.step_shapes(make_run(batch_size=4096, mask_padding=True), few).length == 2
