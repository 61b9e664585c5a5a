"""One optimisation step on the device, and an epoch of them.

The seam between training's logic and its speed: `Engine` is all that the trainer knows of devices, gradients and
optimisers. Within an epoch nothing is copied from the device, so that its queue never runs dry.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from seqrec import seeding
from seqrec.config import Train
from seqrec.data.batches import Batch, CausalBatches
from seqrec.data.negatives import NegativeSampler
from seqrec.errors import DivergedError
from seqrec.losses import Loss
from seqrec.models import SequenceModel


class Engine:
    """Adam on the mean loss of a batch, eager, in fp32. `sampler` is None for a loss that wants no negatives."""

    def __init__(
        self,
        model: SequenceModel,
        loss: Loss,
        sampler: NegativeSampler | None,
        batches: CausalBatches,
        settings: Train,
        device: torch.device,
    ) -> None:
        self.model = model
        self.loss = loss
        self.sampler = sampler
        self.batches = batches
        self.seed = settings.seed
        self.device = device
        self.optimizer = torch.optim.Adam(
            model.parameters(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def run_epoch(self, epoch: int) -> float:
        """Trains on every batch of epoch `epoch` (1-based) once; the mean loss over its positions.

        Raises DivergedError, once the epoch is over, if a loss or a parameter was not finite.
        """
        generators = seeding.begin_epoch(self.seed, epoch, self.device)
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        n_positions = 0
        for batch in self.batches.epoch(epoch):
            total += self._step(batch, generators) * len(batch.targets)
            n_positions += len(batch.targets)
        assert n_positions, "an epoch without a batch"
        mean = float(total) / n_positions
        self._check_finite(mean, epoch)
        return mean

    def _step(self, batch: Batch, generators: seeding.EpochGenerators) -> Tensor:
        """One update; the detached loss, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        negatives = None
        if self.sampler is not None:
            negatives = self.sampler.draw(batch.targets, batch.rows, batch.users, generators.negatives)
        hidden = self.model.states(batch.windows)
        loss = cast(Tensor, self.loss(hidden, self.model.item_embeddings(), batch.targets, negatives, generators.loss))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

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
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in tensors)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's parameters in host memory: keeping it costs the device nothing."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, object]:
        """Model and optimiser, for a checkpoint."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.model.load_state_dict(cast(dict[str, Tensor], state["model"]))
        self.optimizer.load_state_dict(cast(dict[str, object], state["optimizer"]))
