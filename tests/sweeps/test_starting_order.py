"""In which order cells start that no stopping rule has an order for, and which are tried at all."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seqrec import epoch_time
from seqrec.epoch_time import Duration
from sweeps import cards, cluster, costs, placement, run
from sweeps.cells import Cell
from sweeps.spec import Resources, SchedulerSpec
from tests.sweeps.test_execute import CELLS, PLAN, STATISTICS

HOUR = 3600.0


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Predicted hours of a whole cell by batch size, to be filled in; none for those left out."""
    known: dict[int, float] = {}

    def predict(one: Any, statistics: Any) -> Duration | None:
        time = known.get(one.train.batch_size)
        return None if time is None else Duration(time * HOUR / one.train.epochs, 0.0, 0.0, 0.0)

    monkeypatch.setattr(epoch_time, "predict", predict)
    return known


def sizes(ordered: list[Cell]) -> list[int]:
    return [one.run.train.batch_size for one in ordered]


def shares(*given: float | None) -> dict[str, float | None]:
    return {one.cell_key: share for one, share in zip(CELLS, given, strict=True)}


def test_the_longest_start_first(hours: dict[int, float]) -> None:
    hours.update({1: 1.0, 2: 9.0, 3: 70.0, 4: 2.0, 5: 4.0, 6: 0.5})
    assert sizes(placement.order(CELLS, STATISTICS, shares(*[0.5] * 6))) == [3, 2, 5, 4, 1, 6]


def test_cells_of_about_the_same_length_start_share_by_share_the_largest_first(hours: dict[int, float]) -> None:
    hours.update(dict.fromkeys((1, 2, 3, 4), 9.3) | {5: 9.2, 6: 40.0})
    placed = placement.order(CELLS, STATISTICS, shares(0.25, 1.0, 0.25, 1.0, 1.0, 0.125))
    assert sizes(placed) == [6, 2, 4, 5, 1, 3]


def test_the_tail_is_short(hours: dict[int, float]) -> None:
    """Greedily on one worker each, against every order: no worse than the law of longest first, 4/3 - 1/(3 m)."""
    hours.update({1: 3.0, 2: 1.0, 3: 5.0, 4: 2.0, 5: 8.0, 6: 4.0})

    def wall(order: list[int], workers: int = 2) -> float:
        free = [0.0] * workers
        for size in order:
            free[free.index(min(free))] += hours[size]
        return max(free)

    best = min(wall(list(order)) for order in itertools.permutations(hours))
    ours = wall(sizes(placement.order(CELLS, STATISTICS, shares(*[1.0] * 6))))
    assert ours <= (4 / 3 - 1 / 6) * best < wall([2, 4, 1, 6, 3, 5])


def test_without_times_the_largest_start_first_and_equals_as_declared(hours: dict[int, float]) -> None:
    some = [replace(one, predicted_bytes=2**30 * (5 if i == 4 else 1)) for i, one in enumerate(CELLS)]
    assert sizes(placement.order(some, STATISTICS, {})) == [5, 1, 2, 3, 4, 6]
    hours.update({1: 100.0})
    assert sizes(placement.order(some, STATISTICS, shares(*[0.5] * 6))) == [5, 2, 3, 4, 6, 1], "eager ones are slow"


def test_a_cell_that_is_tried_though_it_fits_no_card_is_priced_whole() -> None:
    large = replace(CELLS[0], predicted_bytes=200 * 2**30)
    plan = replace(PLAN, cells=(large, *CELLS[1:]))
    found = {}
    for wanted in (False, True):
        resources = Resources(try_infeasible=wanted)
        card = cards.card("80GiB")
        priced = costs.estimate(
            plan.cells, plan, card=card, assumed=False, gpus=1, resources=resources, scheduler=SchedulerSpec()
        )
        assert priced.too_large == (large,)
        found[wanted] = priced.prices[0].share
    assert found == {False: None, True: 1.0}


def test_the_switch_reaches_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(
        "data: {path: amazon_beauty_5core}\nmodel: {name: sasrec}\nloss: {name: ce}\ngrid: {train.batch_size: [64]}\n"
    )
    packing = []
    for switch in ([], ["--try-infeasible"]):
        command = [str(path), "--plan", "--json", "--card", "0.1GiB", "--storage", str(tmp_path / "runs"), *switch]
        assert run.main(command) == 0
        packing.append(json.loads(capsys.readouterr().out)["costs"]["packing"])
    assert packing == [[], [{"gpu_share": 1.0, "cells": 1}]]


def test_room_is_counted_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"memory": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(cluster, "ray", SimpleNamespace(nodes=lambda: nodes))
    assert cluster.slots(2.0, 0.0) == 2, "three cores hold one of two"
    assert cluster.slots(1.0, 0.5) == 2 + 3, "the second node has cores for three"
    assert cluster.slots(0.1, 0.1666) == 6 + 12
    assert cluster.slots(0.1, 0.3) == 3 + 6, "three of them a card, whatever is left over"
    assert cluster.slots(1.0, 2.0) == 1
