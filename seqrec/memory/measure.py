"""One train step of a configuration, stage by stage, and what each stage takes on the device.

The stages of the published memory measurement: the model is built; gradients of zero; one step of the optimiser, which
makes its state; a batch; forward; the loss; backward; the optimiser. Unlike there, gradients are dropped before the
step, as training drops them, and the optimiser's own step is measured too. The batch is the one with the most positions
of the first epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec import meters, models, seeding, train
from seqrec.config import Run
from seqrec.data.batches import Batch
from seqrec.data.tables import Split
from seqrec.engine import Engine
from seqrec.memory.components import MEANINGS, Breakdown
from seqrec.memory.reference import ReferenceCe
from seqrec.meters import Growth

Result = TypeVar("Result")

Meter = Callable[[Callable[[], Any]], tuple[Any, Growth]]
"""Runs a piece of work; its result, and what it added to the memory that was allocated before."""

OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch's RuntimeErrors say when a device is full; its OutOfMemoryError is one of them."""


def measure(run: Run, split: Split, device: torch.device, *, reference_ce: bool = False) -> Breakdown:
    """The components of one step of `run` on a CUDA device. Never raises for want of memory: the stages reached are
    kept, and `Breakdown.oom` names the one that was not."""
    meters.release(device)
    # What an earlier configuration made the matrix library take would else be missing from this one's.
    torch._C._cuda_clearCublasWorkspaces()
    with seeding.isolated(device):
        result = staged(run, split, device, partial(meters.grow, device=device), reference_ce=reference_ce)
    meters.release(device)
    return result


def staged(run: Run, split: Split, device: torch.device, meter: Meter, *, reference_ce: bool = False) -> Breakdown:
    """`measure` by any meter."""
    record = _Record(meter)
    try:
        _step(record, run, split, device, reference_ce)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        return record.breakdown(record.running)
    return record.breakdown(None)


class _Record:
    """What was measured until now."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.running = ""
        self.alive = 0
        self.components: dict[str, int] = {}
        self.peaks: dict[str, int] = {}

    def keeps(self, component: str, work: Callable[[], Result], stage: str | None = None) -> Result:
        """Runs work that leaves a component behind."""
        result, growth = self._run(component, work, stage)
        self.components[component] = growth.kept_bytes
        return result

    def takes(self, component: str, work: Callable[[], Result], stage: str | None = None) -> tuple[Result, Growth]:
        """Runs work whose component is what it takes at its worst."""
        result, growth = self._run(component, work, stage)
        self.components[component] = growth.peak_bytes
        return result, growth

    def passes(self, name: str, work: Callable[[], Result]) -> Result:
        """Runs work that is no component."""
        return self._run(name, work, None)[0]

    def _run(self, name: str, work: Callable[[], Result], stage: str | None) -> tuple[Result, Growth]:
        self.running = name
        result, growth = self.meter(work)
        if stage is not None:
            self.peaks[stage] = self.alive + growth.peak_bytes
        self.alive += growth.kept_bytes
        return result, growth

    def breakdown(self, oom: str | None) -> Breakdown:
        return Breakdown({name: self.components[name] for name in MEANINGS if name in self.components}, self.peaks, oom)


def _step(record: _Record, run: Run, split: Split, device: torch.device, reference_ce: bool) -> None:
    seeding.seed_weights(run.train.seed)
    model = record.keeps("weights", lambda: models.build(run.model, split.n_items).to(device))
    record.keeps("workspace", lambda: _wake_matrix_library(device))
    eager = run.model_copy(update={"train": run.train.model_copy(update={"engine": "eager", "precision": "fp32"})})
    engine = record.keeps("data", lambda: train.build_engine(eager, split, model, device))
    record.keeps("gradients", lambda: _zero_gradients(engine))
    record.keeps("optimiser", lambda: _update(engine))
    record.passes("dropping gradients", lambda: model.zero_grad(set_to_none=True))

    generators = seeding.begin_epoch(run.train.seed, 1, device)
    model.train()
    batch = record.keeps("batch", lambda: _largest(engine))
    negatives, drawn = record.takes("drawing", lambda: _draw(engine, batch, generators), "drawing")
    record.components["negatives"] = drawn.kept_bytes
    record.components["drawing"] = drawn.peak_bytes - drawn.kept_bytes

    def forward() -> Tensor:
        states = model.states(batch.windows)
        return states if batch.predicted is None else states.index_select(0, batch.predicted)

    hidden = record.keeps("activations", forward, "forward")

    loss = ReferenceCe(batch.windows, run.model.max_length) if reference_ce else engine.loss
    given = (batch.targets, negatives, generators.loss)

    def value() -> None:
        with torch.no_grad():
            loss(hidden.detach(), model.item_embeddings().detach(), *given)

    def value_and_gradients() -> Tensor:
        result: Tensor = loss(hidden, model.item_embeddings(), *given)
        return result

    state = generators.loss.get_state()
    _, of_value = record.takes("loss_forward", value)
    # Both draw the same projections, those that training draws.
    generators.loss.set_state(state)
    result, of_both = record.takes("loss_backward", value_and_gradients, "loss")
    record.components["loss_backward"] = of_both.peak_bytes - of_value.peak_bytes
    record.components["loss_gradients"] = of_both.kept_bytes
    record.takes("backbone_backward", result.backward, "backbone_backward")
    record.takes("optimiser_step", lambda: _update(engine), "optimiser_step")


def _update(engine: Engine) -> None:
    for optimizer in engine.optimizers:
        optimizer.step()


def _wake_matrix_library(device: torch.device) -> None:
    """Makes it take its workspace, for this thread and for the backward pass's; with and without a bias."""
    x = torch.ones(64, 64, device=device, requires_grad=True)
    (F.linear(x, x, x[0]) @ x).sum().backward()  # type: ignore[no-untyped-call]


def _zero_gradients(engine: Engine) -> None:
    for parameter in engine.model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def _largest(engine: Engine) -> Batch:
    """The batch with the most positions."""
    plan = engine.batches.plan(1)
    index = max(range(len(plan.sizes)), key=lambda index: plan.sizes[index].positions)
    start = index * engine.batches.batch_size
    return engine.batches.gather(plan.users[start : start + plan.sizes[index].rows], plan.sizes[index])


def _draw(engine: Engine, batch: Batch, generators: seeding.EpochGenerators) -> Any:
    """The batch's negatives; None for a loss that takes none."""
    if engine.sampler is None:
        return None
    return engine.sampler.draw(
        batch.targets, batch.rows, batch.users, generators.negatives, longest=batch.windows.longest
    )
