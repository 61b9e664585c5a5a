"""The tape of a captured step against every allocation of that step, made on the CPU by the step's own functions.

Kernels are not run: what they are given to write to is allocated by their callers, and shapes never depend on values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from triton.runtime.interpreter import InterpretedFunction as KernelInterface

from seqrec import captured as captured_engine, config, kernels, memory, models, optimizers, seeding
from seqrec.captured import CapturedEngine
from seqrec.data import negatives
from seqrec.data.batches import Capacity, CausalBatches
from seqrec.data.negatives import NegativeSampler
from seqrec.data.tables import Sequences, Statistics
from seqrec.kernels import (
    cross_entropy_launch,
    launch,
    matrix,
    mixture,
    rece_launch,
    rece_tables,
    sampled_launch,
    sce,
    shared_plan,
    top,
)
from seqrec.losses import fused as by_kernels
from seqrec.memory import captured, draws, encoder, fused, likely, plans, tape as tape_of_memory
from seqrec.memory.tape import Held, Tape
from seqrec.models.fused import FusedSasrec

V, L, D, B, N = 3000, 50, 64, 20, 1024
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ce", {}),
    ("cce", {}),
    ("bce", {"n_negatives": 2}),
    ("bce", {"n_negatives": 70}),
    ("bce_plus", {"n_negatives": 90, "sampling": "popularity"}),
    ("gbce", {"n_negatives": 33}),
    ("ce_minus", {"n_negatives": 48}),
    ("ce_minus", {"n_negatives": 1400}),
    ("ce_minus", {"n_negatives": 64, "negatives_scope": "position", "with_replacement": True}),
    ("ce_minus", {"n_negatives": 64, "negatives_scope": "group", "group_size": 16, "exclude_history": False}),
    ("ce_minus", {"n_negatives": 512, "negatives_scope": "batch", "exclude_history": False}),
    ("cce_minus", {"n_negatives": 100}),
    ("cce_minus", {"n_negatives": 100, "sampling": "popularity"}),
    ("sce", {"n_buckets": 20, "bucket_size_x": 20, "bucket_size_y": 40, "mix_x": True}),
    ("sce", {"n_buckets": 70, "bucket_size_x": 9, "bucket_size_y": 16}),
    ("rece", {"n_buckets": 40}),
    ("rece", {"n_buckets": 60, "n_extra_chunks": 0, "rounds": 3}),
    ("rece", {"n_buckets": 12, "rounds": 6}),
]


def make_run(loss: str, keys: dict[str, Any], **model: Any) -> config.Run:
    return config.parse(
        {
            "data": {"path": "made up"},
            "model": {"name": "sasrec", "max_length": L, "hidden_size": D, "n_heads": 2} | model,
            "loss": {"name": loss} | keys,
            "train": {"batch_size": B},
        }
    )


def histories() -> Sequences:
    random = np.random.default_rng(1)
    lengths = random.integers(2, 2 * L, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(random.integers(0, V, offsets[-1]).astype(np.int32), offsets, np.arange(60))


class OnCpu(CapturedEngine):
    """A captured step's own functions, called one after another instead of being recorded."""

    def __init__(self, run: config.Run, low: torch.dtype, size: Capacity) -> None:
        self.device, self.low, self.size = torch.device("cpu"), low, size
        self.model = models.build(run.model, V)
        self.loss = by_kernels.build(run.loss, V, item_counts=np.ones(V, np.int64))
        self.sampler = None
        if self.loss.request is not None:
            counts = np.bincount(histories().items, minlength=V)
            self.sampler = NegativeSampler(self.loss.request, histories(), V, counts, "cpu")
        self.batches = CausalBatches(histories(), max_length=L, batch_size=B, drop_last=True, seed=0, device="cpu")
        self._users = self.batches.plan(1).users
        self._index, self._seed = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        self._losses = torch.zeros(len(self.batches))
        self._generators = seeding.EpochGenerators(torch.Generator(), torch.Generator())
        self.encoder = FusedSasrec(self.model, low, self._seed)
        self.optimizers = optimizers.build(self.model, run.train)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for optimizer in self.optimizers:
            optimizer.step()
        self._forget_gradients()
        self._index.zero_()

    def whole(self) -> None:
        batch, hidden = self._before_loss(self.size)
        value, to_hidden, to_items = self._loss_of(batch, hidden)
        self._backward(hidden, to_hidden, to_items)
        self._finish_step(value)


def traced_peak(work: Any) -> int:
    """Most bytes that `work` had allocated at a time, counted in the allocator's blocks."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    alive = peak = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        size = event.nbytes()
        blocks = -(-abs(size) // 512) * 512
        alive += blocks if size > 0 else -blocks
        peak = max(peak, alive)
    return peak


def taped(run: config.Run, size: captured.Capacity) -> Tape:
    tape = Tape()
    shapes = memory.Shapes(B, L, L, size.positions, D, V, run.model.n_blocks, run.model.n_heads)
    captured.step(tape, run, shapes, shapes, size, V - L)
    return tape


def cpu_sort(tape: Tape, n: int, key: int) -> tuple[Held, Held]:
    """Of the CPU: a copy of the values is sorted in place, with its indices."""
    return tape.take(key * n), tape.take(8 * n)


def _without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelInterface, "__getitem__", lambda self, grid: lambda *arguments, **options: None)
    # On the CPU it would copy its operands.
    monkeypatch.setattr(matrix, "outer", lambda a, b: a.new_zeros((a.shape[1], b.shape[1]), dtype=torch.float32))


MODELS = [
    (torch.bfloat16, {}),
    (torch.float32, {}),
    (torch.bfloat16, {"n_blocks": 1, "n_heads": 1, "mask_padding": True}),
    (torch.float32, {"n_blocks": 3, "dropout": 0.0}),
]
SAME = [("ce", {}), ("bce", {"n_negatives": 2})]
ALL = [(*MODELS[0], *case) for case in CASES] + [(*model, *case) for model in MODELS[1:] for case in SAME]


@pytest.mark.parametrize(("low", "model", "loss", "keys"), ALL)
def test_the_tape_is_what_a_step_allocates(
    monkeypatch: pytest.MonkeyPatch, low: torch.dtype, model: dict[str, Any], loss: str, keys: dict[str, Any]
) -> None:
    _without_kernels(monkeypatch)
    # The profiler counts blocks, not segments.
    monkeypatch.setattr(tape_of_memory, "LARGE", 2**60)
    monkeypatch.setattr(fused, "sort", cpu_sort)
    monkeypatch.setattr(captured, "workspaces", lambda run, between: 0)
    monkeypatch.setattr(captured, "fused_loss", lambda run, width: True)
    monkeypatch.setattr(captured, "low_bytes", lambda run: low.itemsize)
    run = make_run(loss, keys, **model)
    size = captured.Capacity(N, N, B + 6, L, 128, 1)
    engine = OnCpu(run, low, Capacity(N, N, B + 6, L))
    traced, tape = traced_peak(engine.whole), taped(run, size)
    # A few numbers of a block each, and what a search among histories makes for a moment.
    # Autograd adds some gradients of float32 in place, which the tape does not follow: the reference path.
    assert abs(tape.peak / traced - 1) < (0.004 if low == torch.bfloat16 else 0.01)


@pytest.mark.parametrize(("N", "V", "D"), [(1, 1, 1), (700, 60_000, 64), (25_600, 173_511, 64), (80_000, 1000, 257)])
def test_plans_are_the_kernels_own(N: int, V: int, D: int) -> None:
    cpu, half = torch.device("cpu"), torch.float16
    theirs = cross_entropy_launch.plan(N, V, D, half, False, True, cpu)
    assert plans.cross_entropy(N, V, D) == (
        theirs.width, theirs.n_padded, theirs.v_padded, theirs.stretches, theirs.row_stretches
    )  # fmt: skip
    for G, K, ragged in ((1, 5, False), (7, 600, False), (130, 256, True)):
        of_groups = shared_plan.plan(N, V, D, G, K, ragged, half, cpu)
        places = of_groups.programs * of_groups.forward.rows
        assert plans.shared(N, V, D, G, K, ragged) == (of_groups.programs, places, of_groups.copied)
    assert plans.list_bytes(V, D) == sampled_launch.list_bytes(V, D)
    for rounds, n_chunks, reach in ((1, 87, 1), (8, 583, 3), (128, 40, 0)):
        assert plans.is_dense(rounds, n_chunks, reach) == rece_launch.is_dense(rounds, n_chunks, reach)
        sizes = (N + V, V, D, rounds, n_chunks)
        assert plans.rece_sorted_together(*sizes) == rece_tables.sorted_together(*sizes)


def test_tiles_and_bounds_are_the_kernels_own() -> None:
    def of(table: Any) -> plans.Tiles:
        return {width: (tile.rows, tile.columns) for width, tile in table[9].items()}

    assert of(cross_entropy_launch.TILES["forward"]) == plans.CE_FORWARD
    assert of(cross_entropy_launch.TILES["backward"]) == plans.CE_BACKWARD
    assert of(rece_launch.TILES["forward"]) == plans.RECE_FORWARD
    assert of(rece_launch.TILES["dense forward"]) == plans.RECE_DENSE_FORWARD
    assert of(rece_launch.TILES["dense backward"]) == plans.RECE_DENSE_BACKWARD
    assert of(top.TILES) == plans.TOP
    bounds = (rece_launch.PROGRAMS, rece_launch.MOST_STRETCHES, rece_launch.DENSE_PROGRAMS)
    assert bounds == (plans.RECE_PROGRAMS, plans.RECE_MOST_STRETCHES, plans.RECE_DENSE_PROGRAMS)
    bounds = (rece_launch.MOST_DENSE_STRETCHES, rece_launch.WORDS, rece_launch.ROOM, rece_tables.BEHIND.value)
    assert bounds == (
        plans.RECE_MOST_DENSE_STRETCHES, plans.RECE_WORDS, plans.RECE_ROOM, plans.RECE_BEHIND
    )  # fmt: skip
    assert (top._GROUPS_PER_K, top._MOST_GROUPS) == (plans.TOP_GROUPS_PER_K, plans.TOP_MOST_GROUPS)
    assert top._WAVES == plans.TOP_WAVES
    assert (mixture._SHARES, mixture._CENTRES, mixture._ROWS) == (
        plans.MIX_SHARES, plans.MIX_CENTRES, plans.MIX_ROWS
    )  # fmt: skip
    assert sce._PROGRAMS == plans.SCE_PROGRAMS
    assert launch.PROGRAMS == encoder.PROGRAMS
    assert sampled_launch.MOST_POSITIONS == plans.MOST_POSITIONS
    assert kernels.WIDEST == captured.WIDEST
    assert captured_engine.FINEST == captured.FINEST
    assert negatives._DENSE_SHARE == draws.DENSE_SHARE
    limits = {"rece": {"n_buckets": rece_tables.MOST_BUCKETS}, "sce": {"n_buckets": sce.MOST_CENTRES}}
    limits["sce"] |= {"bucket_size_x": sce.LARGEST_BUCKET, "bucket_size_y": sce.LARGEST_BUCKET}
    assert limits == captured.LOSS_LIMITS


@pytest.mark.parametrize("model", [{}, {"name": "bert4rec"}, {"name": "bert4rec", "head": "tied"}])
@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adam"])
def test_the_state_is_counted_exactly(model: dict[str, Any], optimizer: str) -> None:
    run = make_run("ce", {}, **model)
    run = run.model_copy(update={"train": run.train.model_copy(update={"optimizer": optimizer})})
    engine = OnCpu.__new__(OnCpu)
    engine.model = models.build(run.model, V)
    engine.optimizers = optimizers.build(engine.model, run.train, capturable=True)
    lengths = histories().lengths
    statistics = Statistics("", "", 60, int(lengths.sum()), V, 60, tuple((int(one), 1) for one in lengths))
    assert memory.state_bytes(run, statistics) == engine.state_bytes()
    assert sorted(captured.parameter_sizes(run.model, V)) == sorted(p.numel() for p in engine.model.parameters())


def test_a_larger_batch_than_any_user_history_is_a_full_one() -> None:
    of_window = likely.positions_of(((3, 10), (200, 10)), 1, 50)
    assert (of_window.mean, of_window.total) == (26, 520)
    assert of_window.largest(20, 20, 3.0) == 520, "of all users there is one batch"


def test_the_largest_of_many_batches_is_the_likely_one() -> None:
    random = np.random.default_rng(0)
    inputs = random.lognormal(3, 0.8, 20_000).astype(int).clip(2, 60)
    of_window = likely.positions_of(tuple((int(one) + 1, 1) for one in inputs), 1, 60)
    for users in (8, 64, 512):
        n = 20_000 // users
        found = [max(inputs[random.permutation(20_000)][: n * users].reshape(n, users).sum(1)) for _ in range(20)]
        predicted = of_window.largest(users, 20_000, likely.deviations(n))
        assert abs(predicted / float(np.median(found)) - 1) < 0.03


STATISTICS = Statistics("", "", 30_000, 1_200_000, 50_000, 30_000, ((20, 20_000), (80, 10_000)))


def peak(loss: str, keys: dict[str, Any], model: dict[str, Any] | None = None, **train: Any) -> int:
    run = make_run(loss, keys, **({"max_length": 50} | (model or {})))
    run = run.model_copy(update={"train": run.train.model_copy(update={"batch_size": 256} | train)})
    found = memory.predict_peak(run, STATISTICS)
    assert found.peak_bytes == sum(found.parts.values())
    assert min(found.parts.values()) >= 0
    return found.peak_bytes


@pytest.mark.parametrize("model", [{}, {"name": "bert4rec"}], ids=["sasrec", "bert4rec"])
@pytest.mark.parametrize(("loss", "keys"), CASES)
def test_kernels_and_low_precision_need_no_more_than_the_reference(
    loss: str, keys: dict[str, Any], model: dict[str, Any]
) -> None:
    fused_loss = peak(loss, keys, model)
    assert fused_loss == peak(loss, keys, model, engine="captured", precision="bf16", kernels="fused")
    assert fused_loss <= peak(loss, keys, model, kernels="eager")
    assert peak(loss, keys, model, engine="eager", precision="bf16") < peak(loss, keys, model, engine="eager")
    assert peak(loss, keys, model, engine="eager", precision="bf16", kernels="fused") > 0


def test_what_a_validation_leaves_counts_from_the_second_epoch_on() -> None:
    assert peak("ce", {}, epochs=2) - peak("ce", {}, epochs=2, valid_every=2) == captured.HANDLE


def test_kernels_that_cannot_run_are_not_counted_on() -> None:
    wide = make_run("ce", {}, hidden_size=1024)
    assert not captured.fused_encoder(wide.model)
    assert not captured.fused_loss(wide, 1024)
    assert captured.fused_loss(make_run("ce", {}), 64)
    assert not captured.fused_loss(make_run("rece", {"n_buckets": 20_000}), 64)
