"""A search space and a data set's statistics -> every cell, validated. No torch, no ray."""

from __future__ import annotations

from dataclasses import dataclass

from seqrec.data.tables import Statistics
from sweeps.cells import Cell, Scalar
from sweeps.spec import SweepSpec


@dataclass(frozen=True)
class Plan:
    """What a search space means on one data set. Every point of the product is in exactly one of `cells`, `dropped`,
    `infeasible`, or counted in `duplicates`."""

    cells: tuple[Cell, ...]
    """In order of declaration, seeds fastest."""
    duplicates: int
    """Points that resolve to a cell already planned."""
    dropped: tuple[tuple[dict[str, Scalar], str], ...]
    """(parameters, the constraint that was false)."""
    infeasible: tuple[tuple[dict[str, Scalar], str], ...]
    """(parameters, the law that the data set cannot satisfy). A sweep does not start while there are any."""
    statistics: Statistics
    data_path: str


def plan(spec: SweepSpec, statistics: Statistics) -> Plan:
    """Every cell of the search space on this data set."""
    raise NotImplementedError
