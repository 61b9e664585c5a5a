"""Seconds of an epoch, a validation and a whole cell, before anything runs: closed forms with measured coefficients.

A step of the captured engine is a sum of works, each with a time that was fitted to measurements on one card: launches,
rows and positions of the encoder, the item table's Adam, draws of negatives, and each loss's own terms (`step_terms`).
Coefficients, the card and the errors of the fit lie in `epoch_time_h100.json`, which `python -m benchmarks epoch_times`
writes from the measured rows it names. Imports neither torch nor numpy.

Letters: B users of a batch, N its positions, D width, V items, K negatives, R rounds; all of them means over an epoch,
where `seqrec.memory` takes the worst batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from seqrec import config
from seqrec.data.tables import Statistics
from seqrec.memory.evaluation import tile_for

PLACE = Path(__file__).with_name("epoch_time_h100.json")
MEASURED_WIDTH = 64
LISTED = max(config.CUTOFFS)
UNIT = 1e9
"""Terms of work are in thousand millions of what they count, so that coefficients are milliseconds and readable."""


class Step(NamedTuple):
    """Mean sizes of one step."""

    users: float
    positions: float
    width: int
    items: int
    blocks: int


@dataclass(frozen=True)
class Duration:
    """Seconds; of one training alone on the card."""

    epoch_s: float
    """Training of one epoch."""
    valid_s: float
    """One validation."""
    start_s: float
    """From nothing to the first step, in a process that has run another cell."""
    test_s: float

    def cell_s(self, epochs: float, valid_every: int = 1) -> float:
        """A whole cell of so many epochs."""
        return self.start_s + epochs * self.epoch_s + math.ceil(epochs / valid_every) * self.valid_s + self.test_s


@cache
def coefficients() -> Mapping[str, Any]:
    """The measured card and its coefficients: `card`, `encoder` and `losses` (milliseconds a unit of each term),
    `evaluation`, `start_s`, `errors`, `range`, `rows`."""
    found: Mapping[str, Any] = json.loads(PLACE.read_text(encoding="utf-8"))
    return found


def predict(run: config.Run, statistics: Statistics) -> Duration | None:
    """What `run` takes on the measured card; None where nothing like it was measured: eager steps or losses, fp32."""
    train, model = run.train, run.model
    if train.engine == "eager" or train.precision == "fp32" or train.kernels == "eager":
        return None
    step, steps = mean_step(run, statistics)
    # Of BERT4Rec only masked positions are targets.
    asked = step
    if isinstance(model, config.Bert4rec):
        asked = step._replace(positions=step.positions * model.mask_probability)
    known = coefficients()
    terms = encoder_terms(run, step) | draw_terms(run.loss, asked)
    step_ms = sum(known["encoder"][name] * amount for name, amount in terms.items())
    step_ms += sum(known["losses"][name] * amount for name, amount in loss_terms(run.loss, asked).items())
    held_out, history = dict(statistics.rows), step.positions / step.users
    valid, test = (held_out.get(part, statistics.n_train_users) for part in ("valid", "test"))
    memory = run.evaluation.memory_bytes
    ranks = evaluation_terms(valid, statistics.n_items, history, step.width, memory, run.evaluation.batch_size)
    lists = evaluation_terms(test, statistics.n_items, history, step.width, memory, run.evaluation.batch_size, LISTED)
    valid_s, test_s = (
        sum(coefficient * terms[name] for name, coefficient in known["evaluation"][kind].items()) / 1e3
        for kind, terms in (("ranks", ranks), ("lists", lists))
    )
    return Duration(steps * step_ms / 1e3, valid_s, known["start_s"], test_s)


def evaluation_terms(
    users: int, n_items: int, history: float, width: int, memory_bytes: int, batch_size: int, k: int = 0
) -> dict[str, float]:
    """Work of ranking the catalog for `users` of `history` items each, with lists of k: tiles as `seqrec.evaluate`
    takes them, positions to encode, scores in thousand millions (twice where a row of them is cut into tiles)."""
    tile = tile_for(memory_bytes, min(batch_size, users), n_items, k)
    cuts = tile.count(n_items)
    slabs = math.ceil(users / tile.users)
    scores = users * n_items * width / MEASURED_WIDTH / UNIT
    tiles = {"slabs": float(slabs), "scores": scores}
    if k:
        tiles = {"tiles": float(slabs * cuts), "users": users / 1e3, "scores": scores * min(cuts, 2)}
    return tiles | {"positions": users * history / 1e6}


def outside(run: config.Run, statistics: Statistics) -> tuple[str, ...]:
    """In what `run` is unlike all that was timed, so that the forms alone stand for it; empty: in nothing."""
    limits, model, loss = coefficients()["range"], run.model, run.loss
    low, high = limits["items"]
    found = {
        f"model {model.name}": model.name != limits["model"],
        f"hidden_size {model.hidden_size}": model.hidden_size != MEASURED_WIDTH,
        f"n_blocks {model.n_blocks}": model.n_blocks != limits["blocks"],
        f"{statistics.n_items:,} items": not low <= statistics.n_items <= high,
        f"optimizer {run.train.optimizer}": run.train.optimizer != "adam",
        f"rounds above {limits['rounds']}": isinstance(loss, config.Rece) and loss.rounds > limits["rounds"],
    }
    return tuple(words for words, is_so in found.items() if is_so)


def mean_step(run: config.Run, statistics: Statistics) -> tuple[Step, int]:
    """(mean sizes of a step, steps of an epoch)."""
    last = 1 if isinstance(run.model, config.Sasrec) else 0
    users, longest = statistics.n_train_users, run.model.max_length
    positions = sum(min(length - last, longest) * count for length, count in statistics.train_lengths)
    batch = min(run.train.batch_size, users)
    steps = users // batch if run.train.drop_last else math.ceil(users / batch)
    taken = batch if run.train.drop_last else users / steps
    mean = Step(taken, taken * positions / users, run.model.hidden_size, statistics.n_items, run.model.n_blocks)
    return mean, steps


def encoder_terms(run: config.Run, step: Step) -> dict[str, float]:
    """Work of everything but loss and draws: launches grow with the blocks, of which two were measured."""
    N, D, V = step.positions, step.width, step.items
    # A block of BERT4Rec has a feed-forward part of four times the width: 12 D^2 weights where SASRec has 6.
    wide = 2 if isinstance(run.model, config.Bert4rec) else 1
    tables = 2 if isinstance(run.model, config.Bert4rec) and run.model.head == "untied" else 1
    return {
        "launches": (1 + step.blocks) / 3,
        "users": step.users / 1e3,
        "positions": wide * step.blocks * N * D / UNIT,
        "table": tables * V * D / UNIT,
    }


def draw_terms(loss: config.Loss, step: Step) -> dict[str, float]:
    """Draws of negatives that a sampler makes before the step; other losses draw inside their kernels."""
    n_draws = {"bce": step.positions, "gbce": step.positions, "bce_plus": step.positions}.get(loss.name, 0.0)
    if isinstance(loss, config.CeMinus):
        n_draws = _draws(loss, step)
    K = getattr(loss, "n_negatives", 0)
    if loss.name == "bce" or (isinstance(loss, config.CeMinus) and loss.exclude_history):
        return {"draw_unseen": 1.0, "drawn_unseen": n_draws * K / UNIT}
    return {"drawn": n_draws * K / UNIT}


def _draws(loss: config.CeMinus, step: Step) -> float:
    """Sets of negatives a step."""
    match loss.negatives_scope:
        case "user":
            return step.users
        case "position":
            return step.positions
        case "group":
            return step.positions / loss.group_size
    return 1.0


def loss_terms(loss: config.Loss, step: Step) -> dict[str, float]:
    """Work of the loss, forward and backward, by the names of its coefficients: matrix products in thousand millions of
    multiplications, memory in thousand millions of numbers."""
    N, D, V = step.positions, step.width, step.items
    table = {f"{family(loss)}_call": 1.0, f"{family(loss)}_table": V * D / UNIT}
    match loss:
        case config.Ce() | config.Cce():
            return table | {"softmax_product": N * V * D / UNIT, "softmax_logits": N * V / UNIT}
        case config.Bce() | config.BcePlus() | config.Gbce() | config.CceMinus():
            return table | {
                f"{family(loss)}_product": N * loss.n_negatives * D / UNIT,
                f"{family(loss)}_logits": N * loss.n_negatives / UNIT,
            }
        case config.CeMinus():
            K = loss.n_negatives
            if loss.negatives_scope == "position":
                return table | {"shared_product": 0.0, "shared_gather": N * K * D / UNIT}
            return table | {"shared_product": N * K * D / UNIT, "shared_gather": _draws(loss, step) * K * D / UNIT}
        case config.Sce():
            size_x, size_y = min(loss.bucket_size_x, N), min(loss.bucket_size_y, V)
            return table | {
                "sce_choice": loss.n_buckets * (N + V) * D / UNIT,
                "sce_lists": loss.n_buckets * (N + V) / UNIT,
                "sce_product": loss.n_buckets * size_x * size_y * D / UNIT,
            }
        case config.Rece():
            return table | _rece(loss, step)
    raise ValueError(f"loss: got {loss!r}; expected one with known terms.")


def _rece(loss: config.Rece, step: Step) -> dict[str, float]:
    """Every round reads states and table and hashes them, then walks over its windows and looks back at the rounds
    before it; or every pair is scored once."""
    N, D, V, R = step.positions, step.width, step.items, loss.rounds
    n_chunks, windows = loss.n_buckets // loss.buckets_per_chunk, 1 + 2 * loss.n_extra_chunks
    near = N * min(V, V / n_chunks * windows)
    hashing = {
        "rece_states": R * N * D / UNIT,
        "rece_items": R * V * D / UNIT,
        "rece_hash": R * (N + V) * loss.n_buckets * D / UNIT,
    }
    if scores_every_pair(R, n_chunks, loss.n_extra_chunks):
        return hashing | {"rece_pairs": N * V * D / UNIT, "rece_masks": R * N * V / UNIT}
    return hashing | {
        "rece_windows": R * V * windows * D / UNIT,
        "rece_near": R * near / UNIT,
        "rece_earlier": R * (R - 1) * near / UNIT,
    }


def scores_every_pair(rounds: int, n_chunks: int, reach: int) -> bool:
    """What RECE's kernels decide (`seqrec.kernels.rece_launch.is_dense`, which brings triton; a test holds both
    together)."""
    share = min(1.0, (2 * reach + 2) / n_chunks)
    walked = rounds * share * (3.2 + 0.15 * rounds if rounds <= 17 else 4.0 + 0.37 * rounds)
    return walked > 1.27 + 0.0108 * rounds


def family(loss: config.Loss) -> str:
    """Losses that share kernels share coefficients."""
    return {
        "ce": "softmax", "cce": "softmax", "bce": "sampled", "gbce": "sampled", "bce_plus": "sampled",
        "cce_minus": "cce_minus", "ce_minus": "shared", "sce": "sce", "rece": "rece",
    }[loss.name]  # fmt: skip
