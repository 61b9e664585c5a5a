"""Breakdowns as a table for people, JSON and CSV. No torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqrec.memory.cases import Case
from seqrec.memory.components import MEANINGS, STATE, Breakdown

GIB = 2**30

PREDICTED = "predicted"
MEASURED = "measured"


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration with what is known of its memory."""

    case: Case
    predicted: Breakdown
    measured: Breakdown | None

    @property
    def kinds(self) -> list[tuple[str, Breakdown]]:
        return [(PREDICTED, self.predicted), *([(MEASURED, self.measured)] if self.measured is not None else [])]


def headline(device: str | None, reason: str) -> str:
    """Where the numbers come from. device: the measuring one's name; None: nothing was measured, for this reason."""
    source = f"measured on {device}" if device else f"nothing measured ({reason})"
    return f"memory of one train step, GiB: predicted in closed form; {source}"


def table(rows: Sequence[Row]) -> str:
    """One line a component, one column a configuration and kind."""
    columns = [(row.case, kind, breakdown) for row in rows for kind, breakdown in row.kinds]
    lines = [
        ["loss", *(case.loss for case, _, _ in columns)],
        ["batch_size", *(str(case.run.train.batch_size) for case, _, _ in columns)],
        ["catalog_size", *(f"{case.statistics.n_items:,}" for case, _, _ in columns)],
        ["", *(kind for _, kind, _ in columns)],
    ]

    for name in MEANINGS:
        lines.append([name, *(_gib(breakdown.components.get(name)) for _, _, breakdown in columns)])
        if name == STATE[-1]:
            lines.append(["= state", *(_gib(breakdown.state_bytes) for _, _, breakdown in columns)])
    lines.append(["= peak", *(_gib(breakdown.peak_bytes) for _, _, breakdown in columns)])
    lines.append(["peak in", *(breakdown.moment or "-" for _, _, breakdown in columns)])
    if any(breakdown.oom for _, _, breakdown in columns):
        lines.append(["oom", *(breakdown.oom or "-" for _, _, breakdown in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / GIB:.4f}"


def as_json(rows: Sequence[Row], device: str | None) -> str:
    """A list, one object a configuration; bytes. What was not reached is absent."""
    return json.dumps([_configuration(row.case) | _breakdowns(row, device) for row in rows], indent=2)


def _configuration(case: Case) -> dict[str, Any]:
    run = case.run
    return {
        "loss": case.loss,
        "batch_size": run.train.batch_size,
        "catalog_size": case.statistics.n_items,
        "model": run.model.name,
        "max_length": run.model.max_length,
        "hidden_size": run.model.hidden_size,
        "keys": {} if case.reference_ce else run.loss.model_dump(mode="json", exclude={"name"}),
    }


def _breakdowns(row: Row, device: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"device": device} if row.measured is not None else {}
    for kind, breakdown in row.kinds:
        sums = {
            "state_bytes": breakdown.state_bytes,
            "peak_bytes": breakdown.peak_bytes,
            "peak_in": breakdown.moment,
            "oom": breakdown.oom,
        }
        found[kind] = {
            "components_bytes": dict(breakdown.components),
            **{name: value for name, value in sums.items() if value is not None},
        }
    return found


COLUMNS = ("loss", "batch_size", "catalog_size", "model", "max_length", "hidden_size", "keys")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line a configuration, kind and component or sum (state, peak); an `oom` line names the stage instead of
    bytes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "kind", "component", "bytes"])
        for row in rows:
            told = _configuration(row.case)
            told["keys"] = " ".join(f"{key}={value}" for key, value in told["keys"].items())
            for kind, breakdown in row.kinds:
                sums = {"state": breakdown.state_bytes, "peak": breakdown.peak_bytes, "oom": breakdown.oom}
                for name, value in {**breakdown.components, **sums}.items():
                    if value is not None:
                        writer.writerow([*(told[column] for column in COLUMNS), kind, name, value])
