"""What a launch writes down and needs to know of its plan and data."""

from __future__ import annotations

from typing import Any

from seqrec.data.tables import Split
from sweeps import environment
from sweeps.cells import Cell
from sweeps.space import Plan
from sweeps.spec import SweepSpec


def plan_event(spec: SweepSpec, plan: Plan) -> dict[str, Any]:
    statistics = plan.statistics
    return {
        "spec": spec.text,
        "overrides": list(spec.overrides),
        "description": spec.description,
        "cell_keys": [cell.cell_key for cell in plan.cells],
        "duplicates": plan.duplicates,
        "dropped": len(plan.dropped),
        "scheduler": spec.scheduler.model_dump(mode="json"),
        "objectives": dict(spec.objectives),
        "data": {
            "path": plan.data_path,
            "name": statistics.name,
            "digest": statistics.digest,
            **statistics.scope(),
        },
        "environment": environment.describe(),
    }


def cell_event(cell: Cell) -> dict[str, Any]:
    """Fields of the ledger's `cell` event (docs/architecture.md): what the cell is, and the bytes it is predicted to
    need."""
    return {
        "cell_key": cell.cell_key,
        "configuration_key": cell.configuration_key,
        "label": cell.label,
        "parameters": cell.parameters,
        "run": cell.run.model_dump(mode="json"),
        "predicted_bytes": cell.predicted_bytes,
    }


def data_bytes(split: Split) -> int:
    """Bytes of the arrays of a data set."""
    sequences = (split.train, split.valid.history, split.test.history)
    flat = sum(each.items.nbytes + each.offsets.nbytes + each.users.nbytes for each in sequences)
    return flat + split.item_ids.nbytes + split.valid.targets.nbytes + split.test.targets.nbytes
