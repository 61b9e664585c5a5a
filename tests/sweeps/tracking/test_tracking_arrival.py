"""What a sweep is in MLflow once it has arrived, and that it arrives while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from sweeps import ledger
from sweeps.tracking import Tracker, client, links

Make = Callable[..., Any]


def test_a_sweep_arrives_whole(full: Make, store: Any) -> None:
    sweep = full()
    assert store.drain(sweep).pending == 0
    store.assert_told_once(sweep)
    parent, children = store.runs(sweep)
    found = {run.data.tags["sweep.outcome"]: run.info.status for run in children.values()}
    assert found == {
        "done": "FINISHED",
        "stopped": "FINISHED",
        "oom": "FAILED",
        "predicted_oom": "FAILED",
        "diverged": "FAILED",
        "error": "FAILED",
        "interrupted": "KILLED",
    }
    events = [event for event, _ in ledger.read(sweep.ledger)]
    run = children["sce-2-2"]
    of_cell = {e["type"]: e["time_ms"] for e in events if e.get("cell_key") == "sce-2-2"}
    assert (run.info.start_time, run.info.end_time) == (of_cell["start"], of_cell["end"])
    assert run.info.run_name == "sce b128 n_buckets 202 bucket_size_y 1024 s2"
    assert run.data.params["loss.bucket_size_y"] == "1024"
    assert run.data.params["model.hidden_size"] == "64"
    assert run.data.params["train.seed"] == "2"
    assert "train.patience" not in run.data.params, "null is absent"
    assert run.data.tags["sweep.configuration_key"] == sweep.cells["sce-2-2"]["configuration_key"]
    assert run.data.tags["data.digest"] == "d1" * 32
    assert run.data.tags["mlflow.source.git.commit"] == "0123456789abcdef"
    assert run.data.tags["hardware.cpu"] == "2 x Some CPU"
    assert run.data.metrics["best/ndcg_at_10"] == round(run.data.metrics["best/ndcg_at_10"], 5)
    assert children["gbce-2-1235"].data.tags["sweep.reason"].startswith("CUDA out of memory")
    assert parent.info.status == "KILLED"
    assert (parent.info.start_time, parent.info.end_time) == (events[0]["time_ms"], events[-1]["time_ms"])
    assert parent.data.tags["sweep.cells"] == "45"
    assert parent.data.metrics["cells/done"] == 36
    (dataset,) = parent.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("amazon_beauty_5core", "d1" * 18)


def test_telling_twice_changes_nothing(few: Make, store: Any) -> None:
    sweep = few()
    store.drain(sweep)
    before = {key: run.to_dictionary() for key, run in store.runs(sweep)[1].items()}
    store.drain(sweep)
    (sweep.directory / "tracking.json").unlink()
    assert store.drain(sweep).pending == 0
    store.assert_told_once(sweep)
    assert {key: run.to_dictionary() for key, run in store.runs(sweep)[1].items()} == before


def test_events_arrive_while_the_sweep_runs(made: Make, store: Any) -> None:
    sweep = made()
    tracker = Tracker(sweep.ledger.parent / "ledger.jsonl", store.uri, poll_s=0.02)
    sweep.directory.mkdir(parents=True)
    tracker.start()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.train("a", 0.05, outcome="")
    deadline = time.monotonic() + 60
    while store.left(tracker) and time.monotonic() < deadline:
        time.sleep(0.02)
    _, children = store.runs(sweep)
    assert children["a"].info.status == "RUNNING"
    assert children["a"].data.tags["sweep.outcome"] == "running"
    sweep.train("a", 0.05, first=5)
    assert tracker.close() == 0
    store.assert_told_once(sweep)


def test_an_interrupted_cell_goes_on_in_the_same_run(made: Make, store: Any) -> None:
    sweep = made()
    sweep.open(["a", "b"])
    for key in ("a", "b"):
        sweep.cell(key, "ce", {"train.batch_size": ord(key)}, seed=1, gib=1.0)
    sweep.train("a", 0.05, epochs=2, outcome="interrupted", reason="the launch ended first")
    sweep.train("b", 0.05, epochs=2, outcome="")  # its driver is killed
    store.drain(sweep)
    _, children = store.runs(sweep)
    assert {key: run.info.status for key, run in children.items()} == {"a": "KILLED", "b": "RUNNING"}
    sweep.open(["a", "b"], launch=2)
    store.drain(sweep)
    parent, children = store.runs(sweep)
    assert {key: run.info.status for key, run in children.items()} == {"a": "KILLED", "b": "KILLED"}
    assert parent.info.status == "RUNNING"
    sweep.add("start", cell_key="a", attempt=2, node="here", pid=2, from_epoch=2)
    store.drain(sweep)
    assert store.runs(sweep)[1]["a"].info.status == "RUNNING"
    for key in ("a", "b"):
        sweep.train(key, 0.05, first=3, attempt=2)
    sweep.add("close", launch=2, reason="finished", remaining=0)
    store.drain(sweep)
    parent, children = store.runs(sweep)
    assert {key: run.info.status for key, run in children.items()} == {"a": "FINISHED", "b": "FINISHED"}
    assert {run.data.tags["sweep.attempt"] for run in children.values()} == {"2"}
    assert parent.info.status == "FINISHED"
    store.assert_told_once(sweep)


def test_a_new_report_moves_the_fronts_tags(few: Make, store: Any) -> None:
    sweep = few()
    for keys in (["ce-1", "sce-1"], ["sce-1", "bce-1"]):
        tracker = Tracker(sweep.ledger, store.uri, poll_s=0.02).start()
        tracker.attach_report([], keys, "a verdict")
        assert tracker.close() == 0
    _, children = store.runs(sweep)
    tags = {key: run.data.tags["sweep.front"] for key, run in children.items() if "sweep.front" in run.data.tags}
    assert tags == {"ce-1": "false", "sce-1": "true", "bce-1": "true"}


def test_links_open_the_ready_made_view(few: Make, store: Any) -> None:
    sweep = few()
    tracker = store.drain(sweep).tracker
    parent, _ = store.runs(sweep)
    found = dict(tracker.links())
    assert "--backend-store-uri" in found["open MLflow"]
    key = links.view_key(sweep.sweep_id)
    assert f"viewStateShareKey={key}" in found["cells, best first"]
    assert parent.info.run_id in found["report in MLflow"]
    experiment = client.connect(store.uri).get_experiment_by_name(sweep.name)
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert parent.info.run_id in view["searchFilter"]
    assert view["orderByKey"] == "metrics.`best/ndcg_at_10`"
    assert view["compareRunCharts"][0]["xaxis"]["key"] == "memory/peak_gib"
    assert view["compareRunCharts"][1]["selectedParams"] == ["loss.name", "train.batch_size"]
    assert len(experiment.tags[f"mlflow.sharedViewState.{key}"]) < 20_000
