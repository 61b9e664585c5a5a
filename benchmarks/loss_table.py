"""A measured loss as a row of losses.csv, and as a line of the table that is printed.

reference_losses.csv: what the reference implementations took, time eagerly, on random inputs, and the highest peak
beyond the inputs. Its megabytes are MiB: the exact cross-entropy of S3 stands there with 1,477, and its float32
gradient and 16-bit table alone are 1,536 * 10^6 bytes. goals_losses.csv: what the fused losses are to reach.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from benchmarks import rows
from benchmarks.loss_clock import Reading
from benchmarks.loss_problems import Shape

FOLDER = Path(__file__).parent
MIB = 2**20
HEAD = (
    f"{'loss':28} {'who':19} {'shape':5} {'eager ms':>9} {'graph ms':>9} {'MiB':>7}  "
    "reference: times as fast, as small; goals missed"
)
Row = dict[str, object]


@dataclass(frozen=True)
class Label:
    """What a row is about."""

    loss: str
    setting: str
    who: str
    dtype: torch.dtype
    shape: Shape
    references: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.loss} {self.setting}".strip()

    @property
    def by_whom(self) -> str:
        return self.who if self.dtype == torch.float16 else f"{self.who} {SHORT[self.dtype]}"

    @property
    def text(self) -> str:
        return f"{self.name} {self.by_whom} {self.shape.name}"


SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def published() -> list[dict[str, str]]:
    with (FOLDER / "reference_losses.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def goals() -> dict[tuple[str, str, str], dict[str, str]]:
    """(loss, setting, shape) -> goals; an empty one is none."""
    with (FOLDER / "goals_losses.csv").open(newline="") as handle:
        return {(one["loss"], one["setting"], one["shape"]): one for one in csv.DictReader(handle)}


def known(label: Label, inputs: str) -> list[dict[str, str]]:
    """The reference figures of a row's shape, the one that counts first. They were measured on random inputs, and are
    compared with nothing else."""
    if inputs != "random":
        return []
    figures = {(one["reference"], one["shape"]): one for one in published()}
    places = [(name, label.shape.name) for name in label.references]
    return [figures[place] for place in places if place in figures]


def row_of(label: Label, reading: Reading, inputs: str) -> Row:
    """One row, conditions included. An empty cell: there is no such figure."""
    shape = label.shape
    row: Row = {
        "loss": label.loss,
        "setting": label.setting,
        "who": label.who,
        "dtype": str(label.dtype).removeprefix("torch."),
        "inputs": inputs,
        "shape": shape.name,
        "n_positions": shape.n_positions,
        "n_items": shape.n_items,
        "width": shape.width,
        "outcome": reading.outcome,
        "value": "" if reading.value is None else round(reading.value, 6),
    }
    for name, spread in (("eager", reading.eager), ("graph", reading.graph)):
        for key, part in (("ms", "p50"), ("ms_p20", "p20"), ("ms_p80", "p80")):
            row[f"{name}_{key}"] = "" if spread is None else round(getattr(spread, part), 4)
        row[f"{name}_calls"] = "" if spread is None else spread.calls
    row["peak_bytes"] = "" if reading.peak_bytes is None else reading.peak_bytes
    figures = known(label, inputs)
    first = figures[0] if figures else {"reference": "", "ms": "", "peak_mib": ""}
    row["reference"] = first["reference"]
    row["reference_ms"], row["reference_peak_mib"] = first["ms"], first["peak_mib"]
    row["times_faster"] = _faster(first, reading)
    smaller = first["peak_mib"] and reading.peak_bytes
    row["times_smaller"] = round(float(first["peak_mib"]) * MIB / reading.peak_bytes, 2) if smaller else ""
    return {**row, "triton": _triton(), **rows.conditions()}


def _faster(figure: Mapping[str, str], reading: Reading) -> float | str:
    """Of the captured step where there is one."""
    best = reading.graph or reading.eager
    return round(float(figure["ms"]) / best.p50, 2) if best and figure["ms"] else ""


def _triton() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "none"


def missed(label: Label, row: Row, inputs: str) -> list[str]:
    """The goals that a fused loss's row does not reach, on the inputs that they were set for."""
    goal = goals().get((label.loss, label.setting, label.shape.name))
    if goal is None or inputs != "random" or row["outcome"] != "ok":
        return []
    best = row["graph_ms"] if row["graph_ms"] != "" else row["eager_ms"]
    mib = float(str(row["peak_bytes"])) / MIB if row["peak_bytes"] != "" else ""
    laws = [
        ("times_faster", row["times_faster"], ">=", "x"),
        ("most_ms", best, "<=", " ms"),
        ("times_smaller", row["times_smaller"], ">=", "x less memory"),
        ("most_mib", mib, "<=", " MiB"),
    ]
    found = []
    for key, reached, law, unit in laws:
        if goal[key] and reached != "":
            met = float(str(reached)) >= float(goal[key]) if law == ">=" else float(str(reached)) <= float(goal[key])
            if not met:
                found.append(f"{law} {goal[key]}{unit}")
    return found


def line_of(label: Label, row: Row, reading: Reading, inputs: str, is_fused: bool) -> str:
    told: list[str] = []
    if row["outcome"] != "ok":
        told.append({"oom": "out of memory"}.get(str(row["outcome"]), str(row["outcome"])))
    else:
        for figure in known(label, inputs):
            if figure["outcome"] == "oom":
                told.append(f"{figure['reference']}: out of memory")
            else:
                told.append(f"{figure['reference']}: {_faster(figure, reading)}x")
        if told and row["times_smaller"] != "":
            told[0] += f", {row['times_smaller']}x"
        below = missed(label, row, inputs) if is_fused else []
        if below:
            told.append(f"MISSED {', '.join(below)}")
    mib = f"{reading.peak_bytes / MIB:7.0f}" if reading.peak_bytes is not None else f"{'-':>7}"
    times = [f"{spread.p50:9.3f}" if spread else f"{'-':>9}" for spread in (reading.eager, reading.graph)]
    cells = f"{label.name:28} {label.by_whom:19} {label.shape.name:5} {times[0]} {times[1]} {mib}"
    return f"{cells}  {'; '.join(told)}".rstrip()
