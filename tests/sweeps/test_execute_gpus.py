"""Where trials run: on the cluster's GPUs, in shares by predicted memory, alone after running out of it, or on CPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqrec.errors import UserError
from sweeps import execute
from sweeps.ledger import FILE_NAME, read
from sweeps.mps import Wish
from sweeps.space import Plan
from sweeps.spec import Resources
from tests.sweeps.test_execute import CELLS, PLAN, STATISTICS, FakeRay, events, options, ray as ray, space
from tests.sweeps.test_reuse import _edit

assert ray  # the fixture


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 8 GiB."""
    monkeypatch.setattr("sweeps.environment.gpus", lambda: ("a GPU",))


AUTO = Resources(gpus_per_trial="auto")
LARGE = replace(CELLS[0], predicted_bytes=20 * 2**30)
WITH_LARGE = Plan((LARGE, *CELLS[1:]), 0, (), (), STATISTICS, "x")


def of(tmp_path: Path, key: str, kind: str, field: str) -> list[Any]:
    return [event[field] for event in events(tmp_path, kind) if event["cell_key"] == key]


@pytest.mark.usefixtures("a_gpu")
def test_cells_that_fit_no_gpu_are_not_tried(tmp_path: Path, ray: FakeRay) -> None:
    assert execute.run(space(resources=AUTO), WITH_LARGE, options(tmp_path)) == 0
    assert ray.rounds == [[2, 3, 4, 5, 6]]
    assert ray.shares == dict.fromkeys((one.cell_key for one in CELLS[1:]), 0.25)
    assert of(tmp_path, LARGE.cell_key, "end", "outcome") == ["predicted_oom"]
    law = "its predicted peak of 21,474,836,480 bytes takes 25,377,636,352 with margin and context"
    assert of(tmp_path, LARGE.cell_key, "end", "reason") == [f"{law}; the smallest GPU has 8,589,934,592"]


@pytest.mark.usefixtures("a_gpu")
def test_cells_that_fit_no_gpu_are_tried_on_request(tmp_path: Path, ray: FakeRay) -> None:
    resources = AUTO.model_copy(update={"try_infeasible": True})
    assert execute.run(space(resources=resources), WITH_LARGE, options(tmp_path)) == 0
    assert ray.shares[LARGE.cell_key] == 1.0
    assert {event["outcome"] for event in events(tmp_path, "end")} == {"done"}


@pytest.mark.usefixtures("a_gpu")
def test_out_of_memory_beside_others_is_tried_alone_and_then_is_the_end(tmp_path: Path, ray: FakeRay) -> None:
    ray.outcomes = {**ray.outcomes, 3: "oom"}
    assert execute.run(space(resources=AUTO), PLAN, options(tmp_path)) == 0
    key = CELLS[2].cell_key
    assert of(tmp_path, key, "start", "gpu_share") == [0.25, 1.0]
    assert of(tmp_path, key, "end", "outcome") == ["interrupted", "oom"]
    assert of(tmp_path, key, "end", "epochs") == [3, 3]
    assert of(tmp_path, key, "end", "metrics")[-1]["memory/peak_gib"] == 0.75
    [first, _] = of(tmp_path, key, "end", "reason")
    assert first == "out of memory on 0.25 of a GPU, is tried once more alone on a whole one: CUDA out of memory"
    assert set(Counter((event["cell_key"], event["epoch"]) for event in events(tmp_path, "epoch")).values()) == {1}


@pytest.mark.usefixtures("a_gpu")
def test_who_ran_out_of_memory_beside_others_is_alone_in_the_next_launch_too(tmp_path: Path, ray: FakeRay) -> None:
    """The first launch is cut off right behind the first of the two tries."""
    ray.outcomes = {**ray.outcomes, 3: "oom"}
    execute.run(space(resources=AUTO), PLAN, options(tmp_path))
    path = tmp_path / "s" / FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    [cut] = [number for number, line in enumerate(lines) if b'"alone":true' in line]
    path.write_bytes(b"".join(lines[: cut + 1]))
    ray.outcomes = dict.fromkeys(range(1, 7), "done")
    assert execute.run(space(resources=AUTO), PLAN, options(tmp_path)) == 0
    key = CELLS[2].cell_key
    assert of(tmp_path, key, "start", "gpu_share") == [0.25, 1.0]
    assert of(tmp_path, key, "end", "outcome") == ["interrupted", "done"]


def test_out_of_memory_on_the_host_is_the_end(tmp_path: Path, ray: FakeRay) -> None:
    ray.outcomes = {**ray.outcomes, 3: "oom"}
    execute.run(space(), PLAN, options(tmp_path))
    assert of(tmp_path, CELLS[2].cell_key, "end", "outcome") == ["oom"]


def test_a_machine_without_a_gpu_trains_on_its_cpus_and_says_so(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweeps.environment.gpus", lambda: ())
    assert execute.run(space(resources=Resources()), PLAN, options(tmp_path)) == 0
    assert set(ray.shares.values()) == {0.0}
    assert capsys.readouterr().err.count("no GPU is seen on this machine") == 1
    assert execute.run(space(), PLAN, options(tmp_path / "told")) == 0
    assert "no GPU is seen" not in capsys.readouterr().err


def test_the_multi_process_service_runs_while_trials_do(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Wish] = []

    @contextmanager
    def service(wanted: Wish) -> Iterator[None]:
        asked.append(wanted)
        yield

    monkeypatch.setattr("sweeps.mps.service", service)
    monkeypatch.setattr("sweeps.environment.gpus", lambda: ("a GPU",))
    for place, resources in (("on", Resources(mps=True)), ("off", Resources(mps=False))):
        execute.run(space(resources=resources), PLAN, options(tmp_path / place))
    execute.run(space(resources=Resources(mps=True, gpus_per_trial=0.0)), PLAN, options(tmp_path / "cpu"))
    assert asked == [Wish.YES, Wish.NO, Wish.NO]
    with pytest.raises(UserError, match=r"^resources.mps: got True; expected false with --address"):
        execute.run(space(resources=Resources(mps=True)), PLAN, options(tmp_path / "far", address="auto"))
    assert list(read(tmp_path / "far" / "s" / FILE_NAME)) == []


def test_a_cluster_without_gpus_trains_on_its_cpus_and_says_so(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sweeps.cluster.blind_nodes", lambda folder: [])
    for name, gpus, shares in (("with", True, {0.25}), ("without", False, {0.0})):
        monkeypatch.setattr("sweeps.cluster.has_gpus", lambda gpus=gpus: gpus)
        assert execute.run(space(resources=Resources()), PLAN, options(tmp_path / name, address="auto")) == 0
        assert set(ray.shares.values()) == shares
    assert capsys.readouterr().err.count("no GPU is seen on the cluster") == 1


def test_cells_of_gpus_are_not_taken_over_into_a_sweep_on_a_cluster_s_cpus(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.cluster.blind_nodes", lambda folder: [])
    monkeypatch.setattr("sweeps.cluster.has_gpus", lambda: False)
    execute.run(space(name="old"), Plan(CELLS[:2], 0, (), (), STATISTICS, "x"), options(tmp_path))
    _edit(tmp_path / "old", lambda event: event["metrics"].update({"memory/peak_gib": 1.0}), "end")
    auto, far = space(resources=AUTO), {"address": "auto"}
    with pytest.raises(UserError) as refused:
        execute.run(auto, PLAN, options(tmp_path, **far))
    assert str(refused.value) == (
        "s.yaml: resources.gpus_per_trial: got 'auto'; expected a cluster with GPUs, on which the 2 cells that would "
        "be taken over were trained. hint: resources.gpus_per_trial: 0 trains all cells on CPUs; "
        "--no-reuse takes none over"
    )
    assert list(read(tmp_path / "s" / FILE_NAME)) == []
    assert execute.run(space(), PLAN, options(tmp_path, **far)) == 0, "the hint's first way"
    assert ray.rounds[1:] == [[1, 2, 3, 4, 5, 6]]
    other = space(name="t", resources=AUTO)
    assert execute.run(other, PLAN, options(tmp_path, **far, no_reuse=True)) == 0, "and its second"
    assert ray.rounds[2:] == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("first", [True, False])
def test_a_sweep_is_trained_on_gpus_or_on_cpus_and_not_on_both(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """As on a cluster whose GPUs are gone in the evening."""
    here, there = ("GPUs", "CPUs") if first else ("CPUs", "GPUs")
    monkeypatch.setattr("sweeps.environment.gpus", lambda: ("a GPU",) if first else ())
    execute.run(space(resources=AUTO), PLAN, options(tmp_path, limit_trials=2))
    monkeypatch.setattr("sweeps.environment.gpus", lambda: () if first else ("a GPU",))
    with pytest.raises(UserError) as refused:
        execute.run(space(resources=AUTO), PLAN, options(tmp_path))
    assert str(refused.value) == (
        f"s.yaml: resources.gpus_per_trial: got 'auto', which is {there} here; expected trials on {here}, on which 2 "
        "cells of this sweep were trained. hint: another name starts a sweep of its own (--set name=...)"
    )
    assert len(ray.rounds) == 1
    assert execute.run(space(name="t", resources=AUTO), PLAN, options(tmp_path, no_reuse=True)) == 0


@pytest.mark.parametrize("gpus", [True, False])
def test_with_gpus_or_with_nothing_to_train_they_are_taken_over(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, gpus: bool
) -> None:
    monkeypatch.setattr("sweeps.cluster.blind_nodes", lambda folder: [])
    monkeypatch.setattr("sweeps.cluster.has_gpus", lambda: gpus)
    old = CELLS[:2] if gpus else CELLS
    execute.run(space(name="old"), Plan(old, 0, (), (), STATISTICS, "x"), options(tmp_path))
    _edit(tmp_path / "old", lambda event: event["metrics"].update({"memory/peak_gib": 1.0}), "end")
    assert execute.run(space(resources=AUTO), PLAN, options(tmp_path, address="auto")) == 0
    assert len(events(tmp_path, "reuse")) == len(old)
