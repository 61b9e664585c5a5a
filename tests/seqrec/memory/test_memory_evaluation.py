"""What evaluation holds, as predicted, against what the CPU's allocator is asked for; and the laws of tiles."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.profiler import ProfilerActivity, profile

from seqrec import config
from seqrec.data.batches import DeviceSequences
from seqrec.data.splits import leave_one_out, temporal
from seqrec.data.tables import Interactions, Split
from seqrec.evaluate import _last_states, evaluate
from seqrec.memory import evaluation as memory_evaluation
from seqrec.memory.evaluation import LEAST_GROUP, encoding_bytes, evaluation_bytes, scoring_bytes, tile_for
from seqrec.models import fused
from seqrec.models.sasrec import SasrecModel
from seqrec.ranking import Ranker


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that `work` had allocated at a time."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def test_importing_it_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, seqrec.memory.evaluation; print([n for n in ('torch', 'numpy', 'ray') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@settings(max_examples=200, deadline=None)
@given(
    memory_bytes=st.one_of(st.integers(1, 2**20), st.integers(2**20, 2**31)),
    users=st.integers(1, 4096),
    n_items=st.integers(1, 40_000_000),
    k=st.sampled_from([0, 1, 50]),
)
def test_tiles_keep_to_the_budget_and_hold_every_item(memory_bytes: int, users: int, n_items: int, k: int) -> None:
    tile = tile_for(memory_bytes, users, n_items, k)
    assert 1 <= tile.users <= users
    assert tile.items % tile.group == 0
    floor = tile.users == 1 and tile.items == LEAST_GROUP and memory_bytes < 2**16
    assert floor or scoring_bytes(tile, k) <= memory_bytes
    n_tiles = tile.count(n_items)
    assert n_tiles == 1 or tile.items < n_items, "a tile that has a neighbour has no column without an item"
    assert tile.start(0, n_items) == 0
    assert tile.start(n_tiles - 1, n_items) + tile.items >= n_items > (n_tiles - 1) * tile.items
    assert tile.items <= max(memory_evaluation.MOST_WIDTH, LEAST_GROUP), "counts in float32 must stay exact"
    if 2 * scoring_bytes(tile, k) < memory_bytes and tile.users == users:
        assert n_tiles == 1 or 2 * tile.items > memory_evaluation.MOST_WIDTH, (
            "half of the budget is left, and items too"
        )


@pytest.mark.parametrize("k", [0, 50])
@pytest.mark.parametrize(("memory_bytes", "n_items"), [(2**14, 2000), (2**20, 2000), (2**20, 50_000), (2**25, 50_000)])
def test_ranking_allocates_what_was_predicted(memory_bytes: int, n_items: int, k: int) -> None:
    tile = tile_for(memory_bytes, 64, n_items, k)
    hidden, table = torch.randn(tile.users, 8), torch.randn(n_items, 8)
    targets = torch.randint(0, n_items, (tile.users,))
    ranker = Ranker(table, tile, k)
    measured = peak_of(lambda: ranker.rank(hidden, targets, ()))
    assert measured <= scoring_bytes(tile, k) <= 1.15 * measured
    assert measured <= memory_bytes


def make_split(n_items: int = 3000, n_users: int = 200, kind: str = "leave_one_out") -> Split:
    random = np.random.default_rng(0)
    lengths = random.poisson(20, n_users).clip(4)
    user = np.repeat(np.arange(n_users), lengths)
    item = random.integers(0, n_items, len(user))
    item[: min(n_items, len(item))] = random.permutation(n_items)[: len(item)]
    # One user after the other, so that a cut in time leaves training users.
    interactions = Interactions(user, item, np.arange(len(user)), True, "made up", "0" * 64)
    return leave_one_out(interactions) if kind == "leave_one_out" else temporal(interactions, 0.8)


def make_run(**changes: Any) -> config.Run:
    tree: dict[str, Any] = {
        "data": {"path": "made up"},
        "model": {"name": "sasrec", "max_length": 32, "hidden_size": 32, "dropout": 0.0},
        "loss": {"name": "ce"},
        "evaluation": {"batch_size": 32, "memory_bytes": 2**21},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree[section][name] = value
    return config.parse(tree)


def measured_evaluation(run: config.Run, split: Split) -> int:
    model = SasrecModel(run.model, split.n_items)
    return peak_of(
        lambda: evaluate(
            model,
            split.test,
            n_items=split.n_items,
            max_length=run.model.max_length,
            exclude_seen=True,
            batch_size=run.evaluation.batch_size,
            device="cpu",
            lists=True,
            item_counts=split.item_users,
            n_train_users=len(split.train),
            memory_bytes=run.evaluation.memory_bytes,
        )
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluation__memory_bytes": 2**16},
        {"evaluation__batch_size": 7},
        {"evaluation__batch_size": 128, "model__mask_padding": True},
        {"evaluation__batch_size": 8, "model__mask_padding": True, "model__hidden_size": 128},
        {"evaluation__batch_size": 2, "model__mask_padding": True, "model__hidden_size": 512},
        {"data__split": "temporal"},
    ],
    ids=str,
)
def test_an_evaluation_allocates_what_was_predicted(changes: dict[str, Any]) -> None:
    run = make_run(**changes)
    split = make_split(kind=run.data.split)
    # Lists of all users lie on the host, which here is the device too.
    lists = 4 * 50 * len(split.test.targets)
    predicted = evaluation_bytes(run, split.statistics) + lists
    # Histories are taken as long as the longest, which is what makes it an upper bound.
    assert 0.98 < predicted / measured_evaluation(run, split) < 1.8


@pytest.mark.parametrize(
    "model", [{}, {"n_heads": 4}, {"mask_padding": True}, {"hidden_size": 8, "n_blocks": 1}], ids=str
)
def test_encoding_full_histories_allocates_what_was_predicted(model: dict[str, Any]) -> None:
    run = make_run(**{f"model__{key}": value for key, value in model.items()})
    history = DeviceSequences(
        torch.zeros(64 * 40, dtype=torch.int32), torch.arange(1, 65) * 40, torch.full((64,), 40, dtype=torch.int64)
    )
    encoder = SasrecModel(run.model, 100)
    measured = peak_of(lambda: _last_states(encoder, history, torch.arange(64), np.full(64, 40), 32))
    assert 0.98 < encoding_bytes(run.model, 64, 32) / measured < 1.4


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the CPU allocates, where kernels are interpreted")
@pytest.mark.parametrize("model", [{}, {"mask_padding": True, "n_heads": 4}], ids=str)
def test_kernels_encode_within_what_was_predicted(model: dict[str, Any]) -> None:
    """A little less than the modules: no rectangles. In the interpreter, whose first run holds more."""
    run = make_run(**{f"model__{key}": value for key, value in model.items()})
    history = DeviceSequences(
        torch.zeros(16 * 40, dtype=torch.int32), torch.arange(1, 17) * 40, torch.full((16,), 40, dtype=torch.int64)
    )
    encoder = fused.encoder(SasrecModel(run.model, 100).eval())
    assert encoder is not None
    measured = [
        peak_of(lambda: _last_states(encoder, history, torch.arange(16), np.full(16, 40), 32)) for _ in range(2)
    ][1]
    assert 0.98 < encoding_bytes(run.model, 16, 32) / measured < 1.5


def test_the_budget_bounds_scoring_and_the_catalog_does_not() -> None:
    statistics = make_split().statistics
    grown = replace(statistics, n_items=10**7)
    less, more = (make_run(evaluation__memory_bytes=2**size) for size in (22, 26))
    assert evaluation_bytes(less, grown) - evaluation_bytes(less, statistics) < 2**22
    spent = evaluation_bytes(more, grown) - evaluation_bytes(less, grown)
    assert spent == pytest.approx(2**26 - 2**22, rel=0.05)
