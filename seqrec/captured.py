"""Training steps as CUDA graphs: one launch a step, whatever is in it.

A graph has fixed shapes, and batches are ragged. So a step is captured in a few capacities, multiples of a quantum of
positions, each when it is first needed; every batch is replayed in the smallest that holds it, filled up with spare
histories whose targets count nothing. All of a step happens on the device: which users are next, their windows,
targets and negatives, both passes, the optimiser, the counters. The graphs share one pool of memory, as no two of them
run at a time.

A loss that is not `capturable` stands between two graphs, one up to the hidden states and one from their gradient on,
and is given the batch in its exact shape.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from seqrec import meters, optimizers, seeding
from seqrec.config import Train
from seqrec.data.batches import Batch, Batches, Capacity
from seqrec.data.negatives import NegativeSampler
from seqrec.engine import Engine
from seqrec.losses import Loss
from seqrec.models import SequenceModel, fused

FINEST = 256
"""Positions: no two capacities are closer. Below that a step's time no longer follows its size."""


@dataclass(frozen=True, eq=False)
class _Graphs:
    """A step in one capacity."""

    first: torch.cuda.CUDAGraph
    """The whole step, or what precedes the loss."""
    second: torch.cuda.CUDAGraph | None = None
    batch: Batch | None = None
    hidden: Tensor | None = None
    """(M, D) what the first graph leaves for the loss."""
    to_hidden: Tensor | None = None
    """(M, D) where the second graph expects the gradient."""


class CapturedEngine(Engine):
    """`Engine`, replayed. CUDA only."""

    def __init__(
        self,
        model: SequenceModel,
        loss: Loss,
        sampler: NegativeSampler | None,
        batches: Batches,
        settings: Train,
        device: torch.device,
        low: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(model, loss, sampler, batches, settings, device, low)
        self.optimizers = optimizers.build(model, settings, capturable=True)
        mean = float(batches.lengths[batches.users].mean()) * min(settings.batch_size, len(batches.users))
        self.quantum = max(FINEST, round(mean / 12 / 64) * 64)
        # What graphs read and write between steps: their addresses never change.
        self._users = torch.zeros(len(batches) * batches.batch_size, dtype=torch.int64, device=device)
        self._index = torch.zeros(1, dtype=torch.int64, device=device)
        self._seed = torch.zeros(1, dtype=torch.int64, device=device)
        self._losses = torch.zeros(len(batches), device=device)
        self._generators = seeding.EpochGenerators(torch.Generator(device), torch.Generator(device))
        self._to_items: Tensor | None = None
        self.encoder = fused.build(model, low, self._seed)
        self._graphs: dict[Capacity, _Graphs] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = _stream(_default_index(device))
        self._graph_bytes = 0
        self._outside_bytes = 0
        self._warmed = False

    def capacity(self, size: Capacity) -> Capacity:
        """The shape in which a batch of this size is replayed."""
        positions = -(-size.positions // self.quantum) * self.quantum
        targets = positions
        if size.targets != size.positions:
            share = max(64, self.quantum // 4)
            targets = -(-size.targets // share) * share
        # Spare histories of full length must be able to hold all spare positions.
        batches = self.batches
        spare = -(-self.quantum // batches.max_length)
        return Capacity(positions, targets, batches.batch_size + spare, batches.max_length)

    def run_epoch(self, epoch: int) -> float:
        # A graph keeps the state of its generators on the device that is current when they are registered.
        with meters.current(self.device):
            return self._run_epoch(epoch)

    def _run_epoch(self, epoch: int) -> float:
        self.model.train()
        plan = self.batches.plan(epoch)
        self._users.copy_(plan.users)
        self._index.zero_()
        seeding.reseed(self._generators, self.seed, epoch)
        self._seed.fill_(seeding.derive(self.seed, epoch, "dropout") >> 1)
        self._outside_bytes = 0
        for number, size in enumerate(plan.sizes):
            capacity = self.capacity(size)
            if capacity not in self._graphs:
                self._graphs[capacity] = self._capture(capacity)
            graphs = self._graphs[capacity]
            graphs.first.replay()
            if graphs.second is not None:
                self._loss_between(graphs, size, number)
                graphs.second.replay()
        self.step_losses = self._losses[: len(plan.sizes)]
        return self._finished([size.targets for size in plan.sizes], epoch)

    def peak_bytes(self, measured: int) -> int:
        # The allocator does not see a replay: what a graph uses of its pool was counted when it was captured.
        return max(measured, self._outside_bytes) + self._graph_bytes

    def state_bytes(self) -> int:
        # Gradients live in the graphs' pool, out of reach between steps.
        return super().state_bytes() + sum(parameter.nbytes for parameter in self.model.parameters())

    def _capture(self, capacity: Capacity) -> _Graphs:
        """Changes nothing that training depends on: neither weights nor counters nor the state of generators."""
        generators = [self._generators.negatives, self._generators.loss, _default_generator(self.device)]
        states = [generator.get_state() for generator in generators]
        self._outside_bytes = max(self._outside_bytes, torch.cuda.max_memory_allocated(self.device))
        # Libraries load kernels and take workspaces at first use, which a capture may not do.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            self._rehearse(capacity)
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        if not self.loss.capturable and self._to_items is None:
            # It stays, and is no part of what the first graph uses.
            self._to_items = torch.zeros_like(self.model.item_embeddings(), requires_grad=False)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        graphs = self._record(capacity, generators)
        self._graph_bytes = max(self._graph_bytes, torch.cuda.max_memory_allocated(self.device) - before)
        # Gradients are a part of what the graph uses: they would be counted twice if they were there at the reset.
        self._forget_gradients()
        torch.cuda.reset_peak_memory_stats(self.device)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return graphs

    def _rehearse(self, capacity: Capacity) -> None:
        batch, hidden = self._before_loss(capacity)
        if self.loss.capturable:
            _, to_hidden, to_items = self._loss_of(batch, hidden)
        else:
            to_hidden, to_items = torch.zeros_like(hidden), torch.zeros_like(self.model.item_embeddings())
        self._backward(hidden, to_hidden, to_items)
        self._forget_gradients()
        if not self._warmed:
            optimizers.rehearse(self.optimizers)
            self._warmed = True

    def _record(self, capacity: Capacity, generators: list[torch.Generator]) -> _Graphs:
        if self.loss.capturable:

            def whole() -> None:
                batch, hidden = self._before_loss(capacity)
                value, to_hidden, to_items = self._loss_of(batch, hidden)
                self._backward(hidden, to_hidden, to_items)
                self._finish_step(value)

            return _Graphs(self._graph(whole, generators)[0])
        to_items = self._to_items
        assert to_items is not None
        first, (batch, hidden) = self._graph(lambda: self._before_loss(capacity), generators)
        to_hidden = torch.zeros_like(hidden, requires_grad=False)

        def after_loss() -> None:
            self._backward(hidden, to_hidden, to_items)
            self._finish_step(None)

        second, _ = self._graph(after_loss, generators)
        return _Graphs(first, second, batch, hidden.detach(), to_hidden)

    def _graph(self, work: Callable[[], Any], generators: list[torch.Generator]) -> tuple[torch.cuda.CUDAGraph, Any]:
        graph = torch.cuda.CUDAGraph()
        for generator in generators[:2]:  # the default one registers itself
            graph.register_generator_state(generator)
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            except BaseException:
                # The capture is lost; what matters is why.
                with suppress(RuntimeError):
                    graph.capture_end()
                self._forget_gradients()
                raise
            graph.capture_end()
        return graph, result

    def _before_loss(self, capacity: Capacity) -> tuple[Batch, Tensor]:
        batch_size = self.batches.batch_size
        places = self._index * batch_size + torch.arange(batch_size, device=self.device)
        batch = self.batches.gather(self._users.index_select(0, places), capacity)
        if self.encoder is not None:
            self.encoder.refresh()
            hidden = self.encoder.states(batch.windows)
        else:
            with torch.autocast("cuda", self.low, enabled=self.low != torch.float32, cache_enabled=False):
                hidden = self.model.states(batch.windows)
        return batch, hidden if batch.predicted is None else hidden.index_select(0, batch.predicted)

    def _loss_of(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        negatives = self._negatives(batch, self._generators.negatives)
        return self.loss.value_and_gradients(
            hidden, self.model.item_embeddings(), batch.targets, negatives, self._generators.loss, batch.weights
        )

    def _loss_between(self, graphs: _Graphs, size: Capacity, number: int) -> None:
        batch, hidden, to_hidden, n = graphs.batch, graphs.hidden, graphs.to_hidden, size.targets
        assert batch is not None
        assert hidden is not None
        assert to_hidden is not None
        assert self._to_items is not None
        value, gradient, to_items = self.loss.value_and_gradients(
            hidden[:n], self.model.item_embeddings(), batch.targets[:n], None, self._generators.loss
        )
        to_hidden[:n].copy_(gradient)
        to_hidden[n:].zero_()
        self._to_items.copy_(to_items)
        self._losses[number].copy_(value)

    def _backward(self, hidden: Tensor, to_hidden: Tensor, to_items: Tensor) -> None:
        table = self.model.item_embeddings()
        if self.encoder is not None:
            self.encoder.sink.buffer = to_items
        # Without a fused encoder the lookup's gradient is added to the loss's by the graph.
        table.grad = to_items
        torch.autograd.backward([hidden], [to_hidden.to(hidden.dtype)])

    def _finish_step(self, value: Tensor | None) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        if value is not None:
            self._losses.index_copy_(0, self._index, value.detach().float()[None])
        self._index += 1
        self._seed += 2**20

    def _forget_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.encoder is not None:
            self.encoder.sink.buffer = None


@cache
def _stream(index: int) -> torch.cuda.Stream:
    """One for the life of the process: the matrix library keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


def _default_generator(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[_default_index(device)]


def _default_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
