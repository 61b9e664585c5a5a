"""One optimisation step on the device, and an epoch of them.

The seam between training's logic and its speed: `Engine` is all that the trainer knows of devices, gradients and
optimisers. Within an epoch nothing is copied from the device, so that its queue never runs dry. This one runs operation
by operation, in fp32 unless told otherwise: the reference. `seqrec.captured` replays whole steps.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor

from seqrec import optimizers, seeding
from seqrec.config import Train
from seqrec.data.batches import Batch, Batches
from seqrec.data.negatives import Negatives, NegativeSampler
from seqrec.errors import DivergedError
from seqrec.losses import Loss
from seqrec.models import SequenceModel


class Engine:
    """Adam on the mean loss of a batch. `sampler` is None for a loss that wants no negatives.

    low: the dtype of matrix products and attention; parameters, norms and the loss are float32.
    """

    step_losses: Tensor | None = None
    """(n_batches,) float32 on the device: the loss of every step of the last epoch."""

    def __init__(
        self,
        model: SequenceModel,
        loss: Loss,
        sampler: NegativeSampler | None,
        batches: Batches,
        settings: Train,
        device: torch.device,
        low: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.loss = loss
        self.sampler = sampler
        self.batches = batches
        self.seed = settings.seed
        self.device = device
        self.low = low
        self.optimizers = optimizers.build(model, settings)

    def run_epoch(self, epoch: int) -> float:
        """Trains on every batch of epoch `epoch` (1-based) once; the mean loss over its targets.

        Raises DivergedError, once the epoch is over, if a loss or a parameter was not finite.
        """
        generators = seeding.begin_epoch(self.seed, epoch, self.device)
        self.model.train()
        losses, sizes = [], []
        for batch in self.batches.epoch(epoch):
            losses.append(self._step(batch, generators))
            sizes.append(len(batch.targets))
        assert losses, "an epoch without a batch"
        self.step_losses = torch.stack(losses)
        return self._finished(sizes, epoch)

    def _finished(self, sizes: list[int], epoch: int) -> float:
        """The mean of the epoch's losses over its targets. The first time in the epoch that the device is waited
        for."""
        assert self.step_losses is not None
        losses: list[float] = self.step_losses.tolist()
        mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
        self._check_finite(mean, epoch)
        return mean

    def peak_bytes(self, measured: int) -> int:
        """Most bytes that the last epoch's steps needed at a time. measured: the allocator's own peak."""
        return measured

    def _step(self, batch: Batch, generators: seeding.EpochGenerators) -> Tensor:
        """One update; the detached loss, still on the device."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        negatives = self._negatives(batch, generators.negatives)
        with self._lowered():
            hidden = self.model.states(batch.windows)
        if batch.predicted is not None:
            hidden = hidden.index_select(0, batch.predicted)
        loss = cast(Tensor, self.loss(hidden, self.model.item_embeddings(), batch.targets, negatives, generators.loss))
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def _negatives(self, batch: Batch, generator: torch.Generator) -> Negatives | None:
        if self.sampler is None:
            return None
        return self.sampler.draw(
            batch.targets, batch.rows, batch.users, generator, longest=batch.windows.longest, count=batch.count
        )

    def _lowered(self) -> AbstractContextManager[object]:
        """Where the encoder's matrix products take operands of the low dtype."""
        if self.low == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.low)

    def _check_finite(self, loss: float, epoch: int) -> None:
        parameters = list(self.model.named_parameters())
        # The largest magnitude, NaN if any value is: no copy of the item table, which would set the peak.
        largest = torch.stack([torch.linalg.vector_norm(value.detach(), torch.inf) for _, value in parameters]).tolist()
        broken = [name for (name, _), value in zip(parameters, largest, strict=True) if not math.isfinite(value)]
        if not math.isfinite(loss):
            raise DivergedError(f"train/loss: got {loss} in epoch {epoch}; expected a finite number.")
        if broken:
            raise DivergedError(f"{broken[0]}: got a value that is not finite in epoch {epoch}; expected numbers.")

    def state_bytes(self) -> int:
        """Bytes of weights, gradients and optimiser state, tensor by tensor; after a step none of them is missing."""
        parameters = list(self.model.parameters())
        tensors = [*parameters, *(parameter.grad for parameter in parameters if parameter.grad is not None)]
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in tensors)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's parameters in host memory: keeping it costs the device nothing."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, object]:
        """Model and optimisers, for a checkpoint."""
        return {"model": self.model.state_dict(), "optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.model.load_state_dict(cast(dict[str, Tensor], state["model"]))
        saved = cast(list[dict[str, object]], state["optimizers"])
        for optimizer, one in zip(self.optimizers, saved, strict=True):
            optimizer.load_state_dict(one)
