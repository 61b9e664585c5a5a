"""A plan for people (`text`) and for machines (`to_json`): what would run, what not, and why. No torch, no ray."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps import costs as prices, remaining
from sweeps.cells import Cell, Scalar
from sweeps.costs import Costs
from sweeps.outcomes import Outcome
from sweeps.reuse import Finished
from sweeps.space import Parameters, Plan
from sweeps.spec import SweepSpec

GIB = 2**30
EXAMPLES = 10
"""Cells shown of a group that does not run."""


@dataclass(frozen=True)
class Standing:
    """Where a sweep stands before the launch that is planned."""

    ended: Mapping[str, Outcome] = field(default_factory=dict)
    """Outcome by cell key, of earlier launches."""
    taken: Mapping[str, Finished] = field(default_factory=dict)
    """Cells that other sweeps finished."""
    retry: tuple[Outcome, ...] = ()
    """Failures that the launch would try again."""
    limit: int | None = None
    """Cells that it may run."""

    def would_run(self, plan: Plan) -> list[Cell]:
        """As planned; the first of them, where there is a limit."""
        return remaining.to_run(plan.cells, self.ended, self.taken, self.retry)[: self.limit]

    def words(self, cell_key: str) -> str:
        """How a cell has ended, and where; empty: not yet."""
        if cell_key in self.ended:
            return self.ended[cell_key].value
        there = self.taken.get(cell_key)
        return f"{there.outcome} in {there.source['name']}" if there else ""


def text(spec: SweepSpec, plan: Plan, standing: Standing, costs: Costs | None = None) -> str:
    """The whole plan, the totals last."""
    parts = [_header(spec, plan), _cells(spec, plan, standing), _dropped(plan), _infeasible(plan), _memory(plan)]
    parts += [prices.text(costs) if costs else "", _totals(plan, standing)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_json(spec: SweepSpec, plan: Plan, standing: Standing, costs: Costs | None = None) -> dict[str, Any]:
    """The same as plain JSON values, with nothing left out."""
    statistics = plan.statistics
    reused = {key: {"outcome": there.outcome.value, **there.source} for key, there in standing.taken.items()}
    return {
        "name": spec.name,
        "source": spec.source,
        "description": spec.description,
        "data": {
            **spec.data.model_dump(mode="json"),
            **spec.data.protocol(),
            "name": statistics.name,
            "digest": statistics.digest,
            **statistics.scope(),
        },
        "scheduler": spec.scheduler.model_dump(mode="json"),
        "objectives": dict(spec.objectives),
        "overrides": list(spec.overrides),
        "cells": [
            {
                "cell_key": cell.cell_key,
                "configuration_key": cell.configuration_key,
                "label": cell.label,
                "parameters": cell.parameters,
                "predicted_gib": cell.predicted_bytes / GIB,
                "outcome": standing.ended.get(cell.cell_key),
                "reused": reused.get(cell.cell_key),
            }
            for cell in plan.cells
        ],
        "duplicates": plan.duplicates,
        "dropped": [{"parameters": parameters, "constraint": check} for parameters, check in plan.dropped],
        "infeasible": [{"parameters": parameters, "law": law} for parameters, law in plan.infeasible],
        "points": plan.points,
        "histogram": [{"most_gib": edge, "cells": count} for edge, count in histogram(plan).items()],
        "would_run": 0 if plan.infeasible else len(standing.would_run(plan)),
        "costs": prices.to_json(costs) if costs else None,
    }


def refusal(spec: SweepSpec, plan: Plan) -> str | None:
    """Why the sweep does not start: points of it cannot exist on this data set, and no constraint drops them."""
    if not plan.infeasible:
        return None
    count, (_, law) = len(plan.infeasible), plan.infeasible[0]
    constraints = ", ".join(f'"{check}"' for check in _missing_constraints(plan))
    hint = f" hint: to run the rest, constraints: [{constraints}]" if constraints else ""
    what = f"{_many(count, 'point')} of {plan.points:,} cannot exist on {plan.statistics.name}"
    return f"{spec.source}: {what}; first: {law}{hint}"


LAW = re.compile(r"\S*?(\w+): got \S+; expected <= (\d+), (.*?)\.(?= \S+: got|$)")
"""A law of seqrec.feasibility: key, bound, what the bound is."""


def _missing_constraints(plan: Plan) -> list[str]:
    """Constraints that would drop the infeasible points, read off the laws that they break."""
    formulas: dict[str, str] = {}
    bounds: dict[str, int] = {}
    for _, laws in plan.infeasible:
        for name, bound, words in LAW.findall(laws):
            if re.fullmatch(r"\w+( [*+-] \w+)+", words):
                formulas[name] = words
            bounds[name] = min(int(bound), bounds.get(name, int(bound)))
    return [f"{name} <= {formulas.get(name, bound)}" for name, bound in bounds.items()]


def _header(spec: SweepSpec, plan: Plan) -> str:
    statistics, data = plan.statistics, spec.data
    split = " ".join([data.split, *(f"{key} {_shown(value)}" for key, value in data.protocol().items())])
    lines = [
        f"sweep      {spec.name} ({spec.source})",
        f"data       {statistics.name}, {split}: {statistics.n_users:,} users, {statistics.n_items:,} items, "
        f"{statistics.n_interactions:,} interactions, interactions_per_user {statistics.interactions_per_user}",
        f"digest     {statistics.digest}",
        f"scheduler  {spec.scheduler.name}",
    ]
    if spec.description:
        lines.insert(1, f"           {spec.description}")
    if spec.overrides:
        lines.append(f"overrides  {'  '.join(spec.overrides)}")
    return "\n".join(lines)


def _cells(spec: SweepSpec, plan: Plan, standing: Standing) -> str:
    """One line a cell; parameters that are the same in all of them stand above."""
    keys = list(dict.fromkeys(key for cell in plan.cells for key in cell.parameters))
    keys.sort(key=lambda key: (key != "loss.name", key == "train.seed"))
    alike = [key for key in keys if len({cell.parameters.get(key) for cell in plan.cells}) == 1]
    varied = [key for key in keys if key not in alike]
    derived = {key for block in spec.blocks for key in block.derived}
    names = _short(keys)
    head = ["#", "cell_key", *(names[key] + ("*" if key in derived else "") for key in varied), "GiB"]
    rows = [
        [
            str(i),
            cell.cell_key,
            *(_shown(cell.parameters.get(key)) for key in varied),
            f"{cell.predicted_bytes / GIB:.2f}",
        ]
        for i, cell in enumerate(plan.cells, start=1)
    ]
    if standing.ended or standing.taken:
        head.append("outcome")
        for row, cell in zip(rows, plan.cells, strict=True):
            row.append(standing.words(cell.cell_key))
    lines = []
    if alike and plan.cells:
        lines.append("all cells: " + ", ".join(f"{names[k]} {_shown(plan.cells[0].parameters[k])}" for k in alike))
    notes = (["* derived"] if derived & set(varied) else []) + ["GiB: predicted peak of the train step"]
    return "\n".join([*lines, *_table(head, rows), "   ".join(notes)])


def _dropped(plan: Plan) -> str:
    return _groups("dropped by a constraint", plan.dropped)


def _infeasible(plan: Plan) -> str:
    return _groups(f"cannot exist on {plan.statistics.name}", plan.infeasible)


def _groups(title: str, points: Sequence[tuple[Parameters, str]]) -> str:
    """Points by the law that they break."""
    groups: dict[str, list[Parameters]] = {}
    for parameters, law in points:
        groups.setdefault(law, []).append(parameters)
    lines = []
    for law, members in groups.items():
        lines.append(f"{title}: {law} ({len(members):,})")
        lines += [f"    {_words(parameters)}" for parameters in members[:EXAMPLES]]
        if len(members) > EXAMPLES:
            lines.append(f"    and {len(members) - EXAMPLES:,} more (--json lists all)")
    return "\n".join(lines)


def histogram(plan: Plan) -> dict[float, int]:
    """Upper edge of a half-octave, GiB -> cells whose predicted peak is in it, ascending without gaps."""
    bins = Counter(math.ceil(2 * math.log2(max(cell.predicted_bytes, 1) / GIB)) for cell in plan.cells)
    return {2.0 ** (i / 2): bins[i] for i in range(min(bins), max(bins) + 1)} if bins else {}


def _memory(plan: Plan) -> str:
    bins = histogram(plan)
    if not bins:
        return ""
    most = max(bins.values())
    lines = ["predicted peak of the train step, GiB"]
    for edge, count in bins.items():
        lines.append(f"  <= {edge:<8.4g} {count:>7,} {'#' * math.ceil(40 * count / most)}".rstrip())
    return "\n".join(lines)


def _totals(plan: Plan, standing: Standing) -> str:
    ran = sum(cell.cell_key in standing.ended for cell in plan.cells)
    again = sum(standing.ended.get(cell.cell_key) in standing.retry for cell in plan.cells)
    limit, left = standing.limit, len(standing.would_run(plan))
    configurations = len({cell.configuration_key for cell in plan.cells})
    total = (
        f"{_many(len(plan.cells), 'cell')} ({_many(configurations, 'configuration')}) of "
        f"{_many(plan.points, 'point')}: {_many(plan.duplicates, 'duplicate')}, "
        f"{len(plan.dropped):,} dropped by constraints, {len(plan.infeasible):,} cannot exist on {plan.statistics.name}"
    )
    if plan.infeasible:
        return f"{total}\nwould run: nothing, until constraints drop what cannot exist"
    why = [
        f"{ran:,} have ended" if ran else "",
        f"{again:,} of them are tried again" if again else "",
        f"{len(standing.taken):,} are finished in other sweeps" if standing.taken else "",
        f"at most {limit:,} a launch" if limit is not None else "",
    ]
    return ", ".join([f"{total}\nwould run: {left:,}", *filter(None, why)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)).rstrip()


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _short(keys: Sequence[str]) -> dict[str, str]:
    """A key's last word, where only one key has it."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    names = {key: key if last[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys}
    return names | ({"loss.name": "loss"} if "loss.name" in names else {})


def _shown(value: Scalar | None) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _words(parameters: Parameters) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in parameters.items())
