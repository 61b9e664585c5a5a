"""A search space and a data set's statistics -> every cell, validated. No torch, no ray.

The product of a block's axes is walked in the order of declaration, seeds fastest. Everything but the seed is worked
out once a configuration: derived values, constraints, validation, feasibility, predicted memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from seqrec import config, feasibility, memory
from seqrec.config import Run
from seqrec.data.tables import Statistics
from seqrec.errors import ConfigError
from sweeps import cells
from sweeps.blocks import Block, Value
from sweeps.cells import Cell, Scalar
from sweeps.derive import Expression
from sweeps.errors import SpecError
from sweeps.names import Number, takes
from sweeps.spec import SweepSpec

Parameters = dict[str, Scalar]


@dataclass(frozen=True)
class Plan:
    """What a search space means on one data set. Every point of the product is in exactly one of `cells`, `dropped`,
    `infeasible`, or counted in `duplicates`."""

    cells: tuple[Cell, ...]
    """In order of declaration, seeds fastest."""
    duplicates: int
    """Points that resolve to a cell already planned."""
    dropped: tuple[tuple[Parameters, str], ...]
    """(parameters, the constraint that was false)."""
    infeasible: tuple[tuple[Parameters, str], ...]
    """(parameters, the laws that the data set cannot satisfy). A sweep does not start while there are any."""
    statistics: Statistics
    data_path: str

    @property
    def points(self) -> int:
        """Of the whole product."""
        return len(self.cells) + self.duplicates + len(self.dropped) + len(self.infeasible)


def plan(spec: SweepSpec, statistics: Statistics) -> Plan:
    """Every cell of the search space on this data set.

    Raises SpecError for an expression that fails, or a value that breaks its law, in some cell.
    """
    planned: dict[str, Cell] = {}
    dropped: list[tuple[Parameters, str]] = []
    infeasible: list[tuple[Parameters, str]] = []
    duplicates = 0
    keys = spec.data.model_dump() | spec.data.protocol()
    data: dict[str, Value] = {f"data.{key}": value for key, value in keys.items()}
    for block in spec.blocks:
        constants = {**_defaults(block), **_numbers(data), **statistics.scope()}
        for values, seeds in _configurations(block):
            scope = {**constants, **_numbers(values), "train.seed": seeds[0]}
            failed = _first_false(block.program.early, scope)
            derived = {} if failed else _derive(block, scope)
            failed = failed or _first_false(block.program.late, scope)
            parameters = _parameters(block, values, derived)
            if failed:
                dropped += [(_seeded(parameters, seed), failed) for seed in seeds]
                continue
            run = _run(spec, block, {**values, **derived, "train.seed": seeds[0]})
            laws = feasibility.violations(run, statistics)
            if laws:
                infeasible += [(_seeded(parameters, seed), " ".join(laws)) for seed in seeds]
                continue
            predicted = memory.predict_peak(run, statistics).peak_bytes
            for seed in seeds:
                replicate = _reseeded(run, seed)
                cell_key, configuration_key = cells.keys(replicate, statistics.digest)
                if cell_key in planned:
                    duplicates += 1
                    continue
                planned[cell_key] = Cell(cell_key, configuration_key, replicate, _seeded(parameters, seed), predicted)
    return Plan(
        tuple(planned.values()), duplicates, tuple(dropped), tuple(infeasible), statistics, data_path=spec.data.path
    )


def _configurations(block: Block) -> Iterator[tuple[dict[str, Value], tuple[int, ...]]]:
    """(fixed and axis values by key, seeds that share all the rest) of every point of the product."""
    groups = [(seed,) for seed in block.seeds] if block.program.reads("train.seed") else [block.seeds]
    for point in itertools.product(*block.grid.values()):
        values = {**block.fixed, **dict(zip(block.grid, point, strict=True))}
        for seeds in groups:
            yield values, seeds


def _defaults(block: Block) -> dict[str, Number | None]:
    """What the keys are that the block leaves unsaid."""
    return _numbers(
        {
            f"{section}.{name}": info.default
            for section, kind in block.kinds.items()
            for name, info in kind.model_fields.items()
            if not info.is_required()
        }
    )


def _numbers(values: dict[str, Value]) -> dict[str, Number | None]:
    return {key: value for key, value in values.items() if not isinstance(value, str)}


def _first_false(constraints: Sequence[Expression], scope: Mapping[str, Number | None]) -> str | None:
    """The text of the first constraint that does not hold."""
    return next((check.text for check in constraints if not check.evaluate(scope)), None)


def _derive(block: Block, scope: dict[str, Number | None]) -> dict[str, Scalar]:
    """The derived values; `scope` gains them. A whole float becomes an integer where the key takes one."""
    derived: dict[str, Scalar] = {}
    for key, expression in block.program.derived:
        section, _, name = key.partition(".")
        result = expression.evaluate(scope)
        if isinstance(result, float) and takes(block.kinds[section].model_fields[name].annotation, int):
            if not result.is_integer():
                hint = "hint: int(...), floor(...) or ceil(...)"
                raise SpecError(f"{expression.told(scope)}, which is {result}; expected a whole number. {hint}")
            result = int(result)
        derived[key] = scope[key] = result
    return derived


def _parameters(block: Block, values: dict[str, Value], derived: dict[str, Scalar]) -> Parameters:
    """What tells this configuration from others: the loss, the block's own values, the axes, the derived values."""
    chosen = {"loss.name": values["loss.name"]}
    chosen |= {key: values[key] for key in (*block.own, *block.grid) if key in values}
    return {key: value for key, value in {**chosen, **derived}.items() if value is not None}


def _seeded(parameters: Parameters, seed: int) -> Parameters:
    return {**parameters, "train.seed": seed}


def _run(spec: SweepSpec, block: Block, values: dict[str, Value]) -> Run:
    tree: dict[str, dict[str, object]] = {"data": spec.data.model_dump(), "evaluation": {}}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    try:
        return config.parse(tree)
    except ConfigError as error:
        key, _, rest = str(error).partition(": ")
        law, _, hint = rest.partition(" hint: ")
        place = block.places.get(key, f"{spec.source}: {key}")
        cell = ", ".join(f"{axis} = {values[axis]}" for axis in block.grid)
        where = f", in the cell {cell}" if cell else ""
        hint = hint or ("a constraint can drop such cells" if block.grid else "")
        raise SpecError(f"{place}: {law.rstrip('.')}{where}." + (f" hint: {hint}" if hint else "")) from None


def _reseeded(run: Run, seed: int) -> Run:
    """The same run with another seed, which was validated when the file was read."""
    if run.train.seed == seed:
        return run
    return run.model_copy(update={"train": run.train.model_copy(update={"seed": seed})})
