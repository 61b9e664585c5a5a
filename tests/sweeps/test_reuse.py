"""Nothing twice: what other sweeps finished is taken over, and a ledger that is damaged is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqrec import config
from sweeps import cells, execute, results, reuse
from sweeps.errors import LedgerError
from sweeps.launch import Launch
from sweeps.ledger import FILE_NAME, Ledger, read
from sweeps.space import Plan
from sweeps.spec import SchedulerSpec
from sweeps.tracking.records import Records
from tests.sweeps.test_execute import CELLS, STATISTICS, FakeRay, cell, options, ray as ray, space

assert ray  # the fixture


def plan(*batch_sizes: int) -> Plan:
    return Plan(tuple(map(cell, batch_sizes)), 0, (), (), STATISTICS, "x.parquet")


def run(tmp_path: Path, name: str, *batch_sizes: int, scheduler: Any = None, **changes: Any) -> int:
    spec = space(name=name, scheduler=scheduler or SchedulerSpec())
    return execute.run(spec, plan(*batch_sizes), options(tmp_path, **changes))


def told(tmp_path: Path, name: str, *kinds: str) -> list[dict[str, Any]]:
    return [event for event, _ in read(tmp_path / name / FILE_NAME) if event["type"] in kinds]


def test_an_edited_sweep_trains_only_the_difference(
    tmp_path: Path, ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "old", 1, 2, 3)
    assert run(tmp_path, "new", 2, 3, 4) == 0
    assert ray.rounds == [[1, 2, 3], [4]]
    assert "2 cells were finished in other sweeps and are taken over." in capsys.readouterr().out
    run(tmp_path, "newer", 1, 4, 5, 6)
    assert ray.rounds[2:] == [[5, 6]]
    run(tmp_path, "newer", 1, 3, 4, 5, 6)
    assert ray.rounds[3:] == [], "and a sweep edited under its own name takes over too"


def test_what_is_taken_over_is_whole(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path, "old", 1, 2)
    run(tmp_path, "new", 2, 3)
    old, new = results.table(tmp_path / "old"), results.table(tmp_path / "new")
    same = [name for name in old.columns if name != "source"]
    theirs = old[old["cell_key"] == CELLS[1].cell_key][same].reset_index(drop=True)
    ours = new[new["cell_key"] == CELLS[1].cell_key][same].reset_index(drop=True)
    assert theirs.equals(ours)
    assert list(new["source"]) == [f"old ({tmp_path / 'old' / FILE_NAME})", ""]
    assert (tmp_path / "new" / "report" / "pareto.html").exists()
    [reused] = told(tmp_path, "new", "reuse")
    header, end = told(tmp_path, "old", "sweep")[0], told(tmp_path, "old", "end")[1]
    assert reused["source"]["sweep_id"] == header["sweep_id"]
    assert reused["source"]["ended_ms"] == end["time_ms"]
    events = [event for event, _ in read(tmp_path / "new" / FILE_NAME) if event.get("cell_key") == CELLS[1].cell_key]
    assert [event["type"] for event in events] == ["cell", "reuse", "epoch", "epoch", "epoch", "end"]
    assert [event["sequence"] for event, _ in read(tmp_path / "new" / FILE_NAME)] == list(range(15))


def test_mlflow_sees_the_taken_over_as_the_trained(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path, "old", 1)
    run(tmp_path, "new", 1)

    def batch(name: str) -> Any:
        batches = Records().batches(event for event, _ in read(tmp_path / name / FILE_NAME))
        return next(one for one in batches if one.key == CELLS[0].cell_key)

    theirs, ours = batch("old"), batch("new")
    assert (ours.params, ours.status) == (theirs.params, "FINISHED")
    assert [(p.key, p.value, p.step) for p in ours.metrics] == [(p.key, p.value, p.step) for p in theirs.metrics]
    assert ours.tags["sweep.outcome"] == "done"
    assert ours.tags["sweep.reused_from"].startswith("old ")


def test_all_of_it_elsewhere_needs_no_ray(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path, "old", 1, 2, 3)
    assert run(tmp_path, "new", 3, 1) == 0
    assert len(ray.sessions) == 1
    assert told(tmp_path, "new", "close")[-1]["reason"] == "finished"


def test_the_origin_is_whoever_trained_it(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path, "first", 1)
    run(tmp_path, "second", 1)
    shutil.rmtree(tmp_path / "first")
    run(tmp_path, "third", 1)
    assert [event["source"]["name"] for event in told(tmp_path, "third", "reuse")] == ["first"]
    assert ray.rounds == [[1]]


def test_other_storages_count_when_named(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path / "a", "old", 1, 2)
    run(tmp_path / "b", "new", 1, 2)
    assert ray.rounds == [[1, 2], [1, 2]], "not named"
    run(tmp_path / "c", "new", 1, 2, 3, reuse=(tmp_path / "a",))
    run(tmp_path / "d", "new", 1, 2, 3, reuse=(tmp_path / "c" / "new",))
    run(tmp_path / "d", "newer", 1, no_reuse=True)
    assert ray.rounds[2:] == [[3], [1]]


def test_failures_are_not_taken_over(tmp_path: Path, ray: FakeRay) -> None:
    ray.outcomes = {1: "oom", 2: "error", 3: "diverged", 4: "done"}
    run(tmp_path, "old", 1, 2, 3, 4)
    run(tmp_path, "new", 1, 2, 3, 4)
    assert ray.rounds[1:] == [[1, 2, 3]]


@pytest.mark.parametrize("unknown", [(), ("race",)], ids=["whole", "older than a key"])
def test_stopped_cells_only_under_the_same_scheduler(tmp_path: Path, ray: FakeRay, unknown: tuple[str, ...]) -> None:
    asha = SchedulerSpec(name="asha", shuffle_seed=None)
    ray.outcomes = {1: "stopped", 2: "done"}
    run(tmp_path, "old", 1, 2, scheduler=asha)
    _edit(tmp_path / "old", lambda event: [event["scheduler"].pop(key) for key in unknown], "plan")
    run(tmp_path, "same", 1, 2, scheduler=asha)
    assert ray.rounds[1:] == []
    run(tmp_path, "other", 1, 2, scheduler=asha.model_copy(update={"reduction_factor": 4.0}))
    assert ray.rounds[1:] == [[1]]


def test_done_in_one_ledger_comes_before_stopped_in_another(tmp_path: Path, ray: FakeRay) -> None:
    asha = SchedulerSpec(name="asha", shuffle_seed=None)
    ray.outcomes = {1: "stopped"}
    run(tmp_path, "a", 1, scheduler=asha)
    ray.outcomes = {1: "done"}
    run(tmp_path, "b", 1)
    run(tmp_path, "c", 1, no_reuse=True)
    run(tmp_path, "d", 1, scheduler=asha)
    [end] = told(tmp_path, "d", "end")
    assert end["outcome"] == "done"
    assert told(tmp_path, "d", "reuse")[0]["source"]["name"] == "b"


def test_other_numerics_are_other_cells(tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "old", 1, 2)
    monkeypatch.setattr(cells, "NUMERICS_VERSION", config.NUMERICS_VERSION + 1)
    run(tmp_path, "new", 1, 2)
    assert ray.rounds == [[1, 2], [1, 2]]


def test_cells_of_a_gpu_are_not_those_of_a_cpu(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path, "old", 1)
    place = [tmp_path / "old"]
    keys = {CELLS[0].cell_key}
    found = reuse.find(keys, place, scheduler={}, on_gpu=True)
    assert not found.cells
    assert "1 cells were trained on a CPU; this sweep is for GPUs" in found.notes[0]
    _edit(tmp_path / "old", lambda event: event["metrics"].update({"memory/peak_gib": 1.0}), "end")
    assert set(reuse.find(keys, place, scheduler={}, on_gpu=True).cells) == keys
    assert not reuse.find(keys, place, scheduler={}, on_gpu=False).cells


def _edit(directory: Path, change: Callable[[dict[str, Any]], Any], *kinds: str) -> None:
    """Rewrites the events of some types."""
    path = directory / FILE_NAME
    events = [event for event, _ in read(path)]
    for event in events:
        if event["type"] in kinds:
            change(event)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def _cut_middle(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert b'"start"' in lines[3], "which nothing but the gap in the sequence gives away"
    path.write_bytes(b"".join(lines[:3] + lines[4:]))


def _lose_an_epoch(path: Path) -> None:
    events = [event for event, _ in read(path)]
    del events[4]
    path.write_text("".join(json.dumps(event | {"sequence": i}) + "\n" for i, event in enumerate(events)))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "noise": lambda path: path.write_bytes(path.read_bytes()[:900] + b"\n\xff\xfe{{\n" + path.read_bytes()[900:]),
    "a line is missing": _cut_middle,
    "an epoch is missing": _lose_an_epoch,
    "an end without fields": lambda path: _edit(path.parent, lambda event: event.pop("epochs"), "end"),
    "an unknown outcome": lambda path: _edit(path.parent, lambda event: event.update(outcome="great"), "end"),
    "no mapping of metrics": lambda path: _edit(path.parent, lambda event: event.update(metrics=3), "end"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_is_named_and_left_out(
    tmp_path: Path, ray: FakeRay, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "damaged", 1, 2)
    run(tmp_path, "whole", 2, no_reuse=True)
    DAMAGE[damage](tmp_path / "damaged" / FILE_NAME)
    assert run(tmp_path, "new", 1, 2) == 0
    assert ray.rounds[2:] == [[1]]
    said = capsys.readouterr().err
    if damage != "a folder":  # no ledger at all
        assert said.startswith(f"note: {tmp_path / 'damaged' / FILE_NAME} line ")
        assert said.endswith("Its cells are not taken over.\n")


def test_a_ledger_that_is_being_written_gives_what_is_whole(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path, "old", 1, 2)
    path = tmp_path / "old" / FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    last_end = max(i for i, line in enumerate(lines) if b'"end"' in line)
    path.write_bytes(b"".join(lines[:last_end]) + lines[last_end][:-20])
    run(tmp_path, "new", 1, 2)
    assert ray.rounds[1:] == [[2]]


def _crash_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The ledger cannot write its so manieth event from now."""
    append, written = Ledger.append, 0

    def crash(self: Ledger, type: str, **fields: Any) -> Any:
        nonlocal written
        written += 1
        if written == number:
            raise LedgerError("no room")
        return append(self, type, **fields)

    monkeypatch.setattr(Ledger, "append", crash)


def test_a_crash_while_taking_over_is_mended(tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "old", 1)
    with monkeypatch.context() as patched:
        _crash_at(patched, 6)  # sweep, plan, cell, reuse, epoch, and here
        assert run(tmp_path, "new", 1) == 1
    assert len(told(tmp_path, "new", "epoch")) == 1
    assert run(tmp_path, "new", 1) == 0
    assert ray.rounds == [[1]]
    assert [event["epoch"] for event in told(tmp_path, "new", "epoch")] == [1, 2, 3]
    assert len(told(tmp_path, "new", "reuse")) == len(told(tmp_path, "new", "end")) == 1


def test_a_crash_does_not_let_the_rule_stop_what_is_done(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second cell is worse than the first: ASHA would stop it at the epoch behind which the crash comes."""
    run(tmp_path, "old", 1, 2)

    def worsen(event: dict[str, Any]) -> None:
        if event["cell_key"] == CELLS[1].cell_key:
            event["metrics"]["valid/ndcg_at_10"] /= 10

    _edit(tmp_path / "old", worsen, "epoch")
    asha = SchedulerSpec(name="asha", shuffle_seed=None)
    with monkeypatch.context() as patched:
        _crash_at(patched, 12)  # sweep, plan, six of the first cell, cell, reuse, epoch, and here
        assert run(tmp_path, "new", 1, 2, scheduler=asha) == 1
    assert len(told(tmp_path, "new", "epoch")) == 4
    assert run(tmp_path, "new", 1, 2, scheduler=asha) == 0
    assert [event["outcome"] for event in told(tmp_path, "new", "end")] == ["done", "done"]


def test_a_cell_that_has_begun_here_goes_on_here(tmp_path: Path, ray: FakeRay) -> None:
    def begin(launch: Launch) -> None:
        launch.message(CELLS[0].cell_key, {"kind": "start", "node": "n", "pid": 1, "from_epoch": 0, "gpu_share": 0.0})
        launch.message(CELLS[0].cell_key, {"kind": "epoch", "epoch": 1, "metrics": {"valid/ndcg_at_10": 0.1}})
        launch.interrupt()

    ray.before_fit = begin
    run(tmp_path, "new", 1)
    ray.before_fit = lambda launch: None
    run(tmp_path, "old", 1)
    run(tmp_path, "new", 1)
    assert ray.rounds == [[], [1], [1]], "the first was cut off"
    assert not told(tmp_path, "new", "reuse")


def test_the_stopping_rule_learns_from_what_is_taken_over(tmp_path: Path, ray: FakeRay) -> None:
    """And from the ledger alone it learns the same again."""
    asha = SchedulerSpec(name="asha", shuffle_seed=None)
    run(tmp_path, "old", 1, 2)
    rungs: list[Any] = []
    ray.before_fit = lambda launch: rungs.append(launch.rule.rungs[1].ranking[:])
    ray.outcomes = {}
    run(tmp_path, "new", 1, 2, 3, scheduler=asha)
    run(tmp_path, "new", 1, 2, 3, 4, scheduler=asha)
    assert rungs[0] == [0.1, 0.1]
    assert rungs[-1] == [0.1, 0.1]


def test_the_memory_of_a_taken_over_cell_is_predicted_anew(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path, "old", 1)
    larger = replace(CELLS[0], predicted_bytes=3 * 2**30)
    execute.run(space(name="new"), Plan((larger,), 0, (), (), STATISTICS, "x"), options(tmp_path))
    assert told(tmp_path, "new", "end")[0]["metrics"]["memory/predicted_gib"] == 3.0


def test_how_its_times_were_taken_comes_along(tmp_path: Path, ray: FakeRay) -> None:
    run(tmp_path, "first", 1, 2)
    _edit(tmp_path / "first", lambda event: event.update(gpu_share=0.25), "start")
    with Ledger(tmp_path / "first") as ledger:
        key = told(tmp_path, "first", "end")[1]["cell_key"]
        ledger.append("timing", cell_key=key, epochs=3, metrics={"time/epoch_s": 0.5}, node="n", gpu="")
    run(tmp_path, "second", 1, 2)
    run(tmp_path, "third", 1, 2)
    for name in ("second", "third"):
        table = results.table(tmp_path / name)
        assert list(table["timing"]) == ["shared", "alone, again"]
        assert list(table["time/epoch_s"]) == [1.0, 0.5]
