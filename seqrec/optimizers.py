"""Adam (Kingma and Ba 2015, arXiv 1412.6980) for all parameters, with a choice for the item tables, which are most of
them.

A table's moments cost as much memory as two more tables, and a step reads and writes all of it, however few rows had a
gradient.

adam           both moments of every number, torch's fused kernel: the reference
rowwise_adam   the second moment is one number a row, the mean over the row of the squared gradients (as in FBGEMM's
               partial row-wise Adam): 4 V (D - 1) bytes less
lazy_adam      moments and weights of rows without a gradient stand still (the semantics of torch's SparseAdam); time
               follows the rows that a batch touches. With full softmax every row has a gradient, and it is adam.

For a captured step state is made when the optimiser is built, for the step may not allocate it; else at the first step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqrec.config import Train
from seqrec.models import SequenceModel


def build(model: SequenceModel, settings: Train, *, capturable: bool = False) -> list[torch.optim.Optimizer]:
    """The optimisers that together step every parameter. capturable: no step depends on a number of the host."""
    tables: list[nn.Parameter] = []
    if settings.optimizer != "adam":
        n_items = len(model.item_embeddings())
        tables = [p for p in model.parameters() if p.dim() == 2 and len(p) == n_items]
    rest = [p for p in model.parameters() if not any(p is table for table in tables)]
    betas = (settings.beta1, settings.beta2)
    adam = torch.optim.Adam(
        rest,
        lr=settings.learning_rate,
        betas=betas,
        weight_decay=settings.weight_decay,
        fused=True,
        capturable=capturable,
    )
    for parameter in rest if capturable else ():
        zeros = torch.zeros_like(parameter)
        step = torch.zeros((), device=parameter.device)
        adam.state[parameter] = {"step": step, "exp_avg": zeros, "exp_avg_sq": torch.zeros_like(parameter)}
    if not tables:
        return [adam]
    rowwise = settings.optimizer == "rowwise_adam"
    of_tables = TableAdam(
        tables, settings.learning_rate, betas, settings.weight_decay, rowwise=rowwise, lazy=not rowwise
    )
    if capturable:
        of_tables.make_state()
    return [adam, of_tables]


class TableAdam(torch.optim.Optimizer):
    """Adam on (V, D) tables: `rowwise` and `lazy` as in the module's docstring."""

    def __init__(
        self,
        tables: list[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        *,
        rowwise: bool = False,
        lazy: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps, "rowwise": rowwise}
        super().__init__(tables, defaults | {"lazy": lazy})

    def make_state(self) -> None:
        """Moments of zero for every table that has none."""
        for group in self.param_groups:
            for table in group["params"]:
                if not self.state[table]:
                    self.state[table] = {
                        "step": torch.zeros((), device=table.device),
                        "exp_avg": torch.zeros_like(table),
                        "exp_avg_sq": torch.zeros_like(table[:, :1] if group["rowwise"] else table),
                    }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every table that has a gradient."""
        self.make_state()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    state = self.state[table]
                    state["step"] += 1
                    _update(table, table.grad, state, group)


def _update(table: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    numbers = (group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
    switches = (group["rowwise"], group["lazy"])
    if table.device.type == "cuda":
        from seqrec.kernels.adam import adam_rows
    else:
        from seqrec.kernels.reference import adam_rows
    adam_rows(table, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"], *numbers, *switches)


def rehearse(built: list[torch.optim.Optimizer]) -> None:
    """Steps small copies, so that every kernel is loaded; the parameters keep their values."""
    for optimizer in built:
        group = optimizer.param_groups[0]
        device = group["params"][0].device
        twin = nn.Parameter(torch.zeros(2, group["params"][-1].shape[-1], device=device))
        twin.grad = torch.zeros_like(twin)
        settings = {key: value for key, value in group.items() if key != "params"}
        if isinstance(optimizer, TableAdam):
            TableAdam(
                [twin], settings["lr"], settings["betas"], rowwise=settings["rowwise"], lazy=settings["lazy"]
            ).step()
        else:
            torch.optim.Adam([twin], lr=settings["lr"], fused=True, capturable=True).step()
