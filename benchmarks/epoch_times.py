"""Coefficients of `seqrec.epoch_time` from measured rows: `python -m benchmarks epoch_times` fits and writes them.

Rows, all of one card: `training.csv` with fused kernels (steps with and without the loss), `losses.csv` (fused, random
inputs), the fused rows of nowplaying in `studies_times.csv`, and the rows by kernels of `evaluation.csv`; of a case
that was timed again the latest. Each family of losses is fitted by itself, then everything else. Least squares of
relative errors, no coefficient below zero. Errors are of the fitted rows, and of each row when it is left out.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqrec import config, epoch_time
from seqrec.epoch_time import Step

RESULTS = Path(__file__).parent / "results"
CARD = "NVIDIA H100 80GB HBM3"
TRAINING = {"items": 173_511, "users": 27_516, "positions": 2_026_942}
"""Of `benchmarks.steps.synthetic`."""
NOWPLAYING = {"items": 60_416, "users": 131_867, "positions": 644_890, "batch": 512}
"""Of nowplaying, split leave-one-out, windows of 30."""
MOST_ROUNDS = 128
BATCH = 256
"""Users that `benchmarks.evaluation` encodes at a time."""

TABLE_MS = 28 / 3.35e12 * epoch_time.UNIT * 1e3
"""Of Adam over a thousand million numbers of the item tables, 28 bytes each (weight and both moments read and written,
the gradient read), at the card's nominal bandwidth. Not fitted: the catalogs of the timed trainings are too alike to
part it from the launches, and at a million items it is most of a step."""


class Row(NamedTuple):
    """One measurement as an equation: sum of coefficient times amount is `ms`."""

    label: str
    terms: dict[str, float]
    ms: float


Only = Mapping[str, Sequence[str]]
"""File -> commits whose rows count."""


CASES = {
    "training.csv": ("loss", "batch_size", "keys"),
    "losses.csv": ("loss", "setting", "shape", "dtype"),
    "studies_times.csv": ("study", "configuration"),
    "evaluation.csv": ("n_users", "n_items", "memory_bytes", "lists"),
}
"""What tells a file's cases apart."""


def read(name: str, only: Only | None = None) -> list[dict[str, str]]:
    """Rows of the card by kernels, of each case the last. only: of those commits alone, so that later rows do not
    change an earlier fit."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["gpu"] == CARD and _counts(name, row) and (only is None or row["commit"] in only[name]):
                found[tuple(row[key] for key in CASES[name])] = row
    return list(found.values())


def _counts(name: str, row: Mapping[str, str]) -> bool:
    match name:
        case "losses.csv":
            return row["who"] == "fused" and row["inputs"] == "random" and bool(row["graph_ms"])
        case "evaluation.csv":
            return row["kernels"] == "True"
        case "studies_times.csv":
            return row["kernels"] == "fused" and row["study"] == "nowplaying"
    return row["kernels"] == "fused"


def fit(rows: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    """Coefficients >= 0 with the least squares of relative errors: the best of all sets of terms that leave none
    below zero."""
    matrix = np.array([[row.terms.get(name, 0.0) / row.ms for name in names] for row in rows])
    best, best_error = np.zeros(len(names)), np.inf
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(range(len(names)), count):
            found, *_ = np.linalg.lstsq(matrix[:, chosen], np.ones(len(rows)), rcond=None)
            error = float(((matrix[:, chosen] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < best_error * (1 - 1e-9):
                best, best_error = np.zeros(len(names)), error
                best[list(chosen)] = found
    return {name: float(f"{value:.5g}") for name, value in zip(names, best, strict=True)}


def told(row: Row, known: Mapping[str, float]) -> float:
    return sum(known[name] * amount for name, amount in row.terms.items())


def errors(rows: Sequence[Row], names: Sequence[str], known: Mapping[str, float]) -> dict[str, Any]:
    """Relative errors of the fit, and of each row as told by the others."""
    fitted = [told(row, known) / row.ms - 1 for row in rows]
    left_out = []
    for i, row in enumerate(rows):
        others = [*rows[:i], *rows[i + 1 :]]
        if len(others) >= 2:
            left_out.append(told(row, fit(others, names)) / row.ms - 1)
    return {
        "rows": len(rows),
        "median": round(statistics.median(map(abs, fitted)), 3),
        "largest": round(max(fitted, key=abs), 3),
        "left_out_median": round(statistics.median(map(abs, left_out)), 3) if left_out else None,
        "left_out_largest": round(max(left_out, key=abs), 3) if left_out else None,
    }


# ---------------------------------------------------------------------------------------------------------------- rows


def loss_of(name: str, keys: Mapping[str, Any]) -> config.Loss:
    tree = {"data": {"path": "x"}, "model": {"name": "sasrec"}, "loss": {"name": name, **keys}}
    return config.parse(tree).loss


def alone(only: Only | None) -> list[tuple[config.Loss, Row]]:
    """The losses by themselves."""
    found = []
    for row in read("losses.csv", only):
        given = dict(word.split("=") for word in row["setting"].split())
        N, V = int(row["n_positions"]), int(row["n_items"])
        name, keys = row["loss"], {}
        if "K" in given:
            keys["n_negatives"] = int(given["K"])
        users = 128.0 * N / 25_600
        if name == "ce_minus_group":
            name, keys = "ce_minus", keys | {
                "negatives_scope": "group", "group_size": int(given["G"]), "exclude_history": False,
            }  # fmt: skip
        elif name == "ce_minus_user":
            name = "ce_minus"
        elif name == "rece":
            extra, rounds = int(given["extra"]), int(given["rounds"])
            n_buckets = int((4 * (1 + 2 * extra) * min(V, N)) ** 0.5)
            keys = {"n_buckets": n_buckets, "n_extra_chunks": extra, "rounds": rounds}
        elif name == "sce":
            size = int(2 * N**0.5)
            keys = {"n_buckets": size, "bucket_size_x": size, "bucket_size_y": int(given["b_y"])}
        loss = loss_of(name, keys)
        step = Step(users, N, int(row["width"]), V, 2)
        label = f"{row['loss']} {row['setting']} {row['shape']}"
        found.append((loss, Row(label, epoch_time.loss_terms(loss, step), float(row["graph_ms"]))))
    return found


def in_training(only: Only | None) -> list[tuple[config.Loss, Row, Row]]:
    """(loss, what the loss adds to a step, the step without it)."""
    found = []
    for row in read("training.csv", only):
        keys = {key: json.loads(value.lower()) for key, value in (word.split("=") for word in row["keys"].split())}
        loss, batch = loss_of(row["loss"], keys), int(row["batch_size"])
        step = Step(batch, batch * TRAINING["positions"] / TRAINING["users"], 64, TRAINING["items"], 2)
        label = f"{row['loss']} b{batch} {row['keys']}"
        bare = float(row["without_loss_ms"])
        terms = _bare(loss, step)
        added = Row(label, epoch_time.loss_terms(loss, step), float(row["step_ms"]) - bare)
        found.append((loss, added, Row(f"{label}, no loss", terms, bare)))
    return found


def _bare(loss: config.Loss, step: Step) -> dict[str, float]:
    run = config.parse({"data": {"path": "x"}, "model": {"name": "sasrec"}, "loss": loss.model_dump()})
    return epoch_time.encoder_terms(run, step) | epoch_time.draw_terms(loss, step)


def studied(only: Only | None) -> list[tuple[config.Loss, Step, str, float]]:
    """(loss, sizes, label, milliseconds a step) of whole trainings on nowplaying."""
    found = []
    users, batch = NOWPLAYING["users"], NOWPLAYING["batch"]
    steps = -(-users // batch)
    step = Step(users / steps, NOWPLAYING["positions"] / steps, 64, NOWPLAYING["items"], 2)
    for row in read("studies_times.csv", only):
        keys = json.loads(row["run"])["loss"]
        loss = loss_of(keys.pop("name"), keys)
        found.append((loss, step, f"nowplaying {row['configuration']}", 1e3 * float(row["epoch_s"]) / steps))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=epoch_time.PLACE)
    arguments = parser.parse_args()
    arguments.out.write_text(json.dumps(made(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}")
    return 0


def made(only: Only | None = None) -> dict[str, Any]:
    """The file's content. only: from these commits' rows."""
    by_family: dict[str, list[Row]] = {}
    for loss, row in alone(only):
        by_family.setdefault(epoch_time.family(loss), []).append(row)
    for loss, row, _ in in_training(only):
        by_family.setdefault(epoch_time.family(loss), []).append(row)
    losses: dict[str, float] = {}
    told_errors: dict[str, Any] = {}
    for name, rows in by_family.items():
        names = list(dict.fromkeys(term for row in rows for term in row.terms))
        found = fit(rows, names)
        losses |= found
        told_errors[f"loss {name}"] = errors(rows, names, found)
    bare = [row for _, _, row in in_training(only)]
    whole = [Row(added.label, added.terms | row.terms, added.ms + row.ms) for _, added, row in in_training(only)]
    for loss, step, label, ms in studied(only):
        spent = told(Row(label, epoch_time.loss_terms(loss, step), ms), losses)
        bare.append(Row(label, _bare(loss, step), ms - spent))
        whole.append(Row(label, _bare(loss, step) | epoch_time.loss_terms(loss, step), ms))
    bare = [row._replace(ms=row.ms - TABLE_MS * row.terms.pop("table")) for row in bare]
    names = list(dict.fromkeys(term for row in bare for term in row.terms))
    encoder = fit(bare, names)
    told_errors["step without loss and table"] = errors(bare, names, encoder)
    encoder["table"] = float(f"{TABLE_MS:.5g}")
    both = encoder | losses
    all_errors = {row.label: round(told(row, both) / row.ms - 1, 3) for row in whole}
    told_errors["epoch"] = {
        "rows": len(whole),
        "median": round(statistics.median(map(abs, all_errors.values())), 3),
        "largest": max(all_errors.values(), key=abs),
    }
    ranking: dict[str, dict[str, float]] = {}
    for kind, rows in evaluated(only).items():
        names = list(dict.fromkeys(term for row in rows for term in row.terms))
        ranking[kind] = fit(rows, names)
        told_errors[f"evaluation, {kind}"] = errors(rows, names, ranking[kind])
    return {
        "card": CARD,
        "command": "python -m benchmarks epoch_times",
        "encoder": encoder,
        "losses": losses,
        "evaluation": ranking,
        "start_s": round(statistics.median(float(row["first_step_s"]) for row in read("training.csv", only)), 3),
        "errors": told_errors,
        "epoch_errors": all_errors,
        "range": {"items": [60_416, 1_000_001], "blocks": 2, "rounds": MOST_ROUNDS, "model": "sasrec"},
        "rows": {name: sorted({row["commit"] for row in read(name, only)}) for name in CASES},
    }


def evaluated(only: Only | None) -> dict[str, list[Row]]:
    """Evaluations of users' ranks and of their lists, by kernels where there are any, at every budget of memory."""
    found: dict[str, list[Row]] = {"ranks": [], "lists": []}
    for row in read("evaluation.csv", only):
        users, items, memory = (int(row[key]) for key in ("n_users", "n_items", "memory_bytes"))
        lists = row["lists"] == "True"
        history, k = min(float(row["history"]), 200.0), epoch_time.LISTED if lists else 0
        terms = epoch_time.evaluation_terms(users, items, history, 64, memory, BATCH, k)
        label = f"{users} users, {items} items, {memory} bytes"
        found["lists" if lists else "ranks"].append(Row(label, terms, 1e3 * float(row["seconds"])))
    return found


if __name__ == "__main__":
    sys.exit(main())
