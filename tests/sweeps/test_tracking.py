"""The ledger arrives in MLflow exactly once, whatever breaks on the way. One SQLite store serves the whole module."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seqrec.errors import UserError
from sweeps import ledger, report, sync
from sweeps.tracking import Tracker, client, is_tracked, links
from sweeps.tracking.records import PARENT, Records, rounded

Make = Callable[..., Any]
Connect = Callable[[str], Any]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::DeprecationWarning:pydantic")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a SQLite store; making its tables takes seconds, so it is made once."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('a store') / 'mlflow.db'}"
    client.connect(uri)
    return uri


@pytest.fixture
def made(made: Make, request: pytest.FixtureRequest) -> Make:
    """Sweeps of their own in the shared store."""

    def make(**fields: Any) -> Any:
        name = request.node.name.replace("[", "-").rstrip("]")
        return made(**({"name": name, "sweep_id": f"id-{name}"} | fields))

    return make


@pytest.fixture
def few(made: Make) -> Make:
    """A small sweep with ends of several kinds, its cells interleaved as two workers would."""

    def make() -> Any:
        sweep = made()
        ends = {"ce-1": "done", "sce-1": "done", "sce-2": "done", "bce-1": "stopped", "bce-2": "predicted_oom"}
        sweep.open(list(ends))
        for number, (key, outcome) in enumerate(ends.items()):
            sweep.cell(key, key[:-2], {"train.batch_size": 64 + number}, seed=1, gib=1.0 + number)
            if outcome == "predicted_oom":
                sweep.add("end", cell_key=key, attempt=1, outcome=outcome, reason="too big", epochs=0, metrics={})
            else:
                sweep.train(key, 0.05 + 0.001 * number, epochs=2, outcome=outcome, peak_gib=1.0 + number)
        sweep.add("close", launch=1, reason="finished", remaining=0)
        return sweep

    return make


def drain(sweep: Any, uri: str, connect: Connect | None = None, timeout_s: float = 120.0) -> Tracker:
    tracker = Tracker(sweep.ledger, uri, connect=connect, poll_s=0.02, first_wait_s=0.02).start()
    tracker.pending = tracker.close(timeout_s)  # type: ignore[attr-defined]
    return tracker


def pending(tracker: Tracker) -> int:
    return int(tracker.pending)  # type: ignore[attr-defined]


def runs(sweep: Any, uri: str) -> tuple[Any, dict[str, Any]]:
    """(parent, children by cell key); fails on a second run of a cell."""
    mlflow = client.connect(uri)
    experiment = mlflow.get_experiment_by_name(sweep.name)
    found = mlflow.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in found if "sweep.cell_key" in run.data.tags]
    (parent,) = [run for run in found if run not in children]
    keys = Counter(run.data.tags["sweep.cell_key"] for run in children)
    assert set(keys.values()) <= {1}, f"doubled: {keys}"
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
    return parent, {run.data.tags["sweep.cell_key"]: run for run in children}


def stored(uri: str, run_id: str) -> list[tuple[str, float, int, int]]:
    """Every value of a run, as the store has it: (name, value, time, step)."""
    path = links.sqlite_path(uri)
    assert path
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("select key, value, timestamp, step from metrics where run_uuid = ?", (run_id,))
        return sorted(rows)
    finally:
        connection.close()


def expected(sweep: Any, cell_key: str) -> list[tuple[str, float, int, int]]:
    """What the ledger has to tell of a cell, at the digits that are told."""
    values: list[tuple[str, float, int, int]] = []
    for event, _ in ledger.read(sweep.ledger):
        if event.get("cell_key") == cell_key and event["type"] in ("epoch", "end"):
            step = int(event["epoch" if event["type"] == "epoch" else "epochs"])
            values += [
                (str(name), rounded(name, value), int(event["time_ms"]), step)
                for name, value in event["metrics"].items()
                if event["type"] == "end" or name == "valid/ndcg_at_10" or not name.startswith("valid/")
            ]
    return sorted(values)


def assert_told_once(sweep: Any, uri: str) -> None:
    _, children = runs(sweep, uri)
    started = {e["cell_key"] for e, _ in ledger.read(sweep.ledger) if e["type"] in ("start", "end")}
    assert children.keys() == started
    for key, run in children.items():
        assert stored(uri, run.info.run_id) == expected(sweep, key), key


class Proxy:
    """An MlflowClient whose calls pass `before` and `after` first and last; either may raise."""

    def __init__(self, uri: str, before: Any = None, after: Any = None) -> None:
        self._client = client.connect(uri)
        self._before, self._after = before, after

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)

        def call(*args: Any, **named: Any) -> Any:
            if self._before:
                self._before(name, args, named)
            result = function(*args, **named)
            if self._after:
                self._after(name, args, named)
            return result

        return call


class CrashError(Exception):
    """The process is gone: whatever was not on disk is lost."""


def outage() -> BaseException:
    from mlflow.exceptions import MlflowException

    error: BaseException = MlflowException("API request failed: connection refused")
    return error


class Times:
    """Raises the given number of times, then never again."""

    def __init__(self, count: int, name: str, error: Callable[[], BaseException]) -> None:
        self.left, self.name, self.error = count, name, error

    def __call__(self, name: str, args: Any, named: Any) -> None:
        if name == self.name and self.left:
            self.left -= 1
            raise self.error()


# ------------------------------------------------------------------------------------------------------- what arrives


def test_a_sweep_arrives_whole(full: Make, store: str) -> None:
    sweep = full()
    assert pending(drain(sweep, store)) == 0
    assert_told_once(sweep, store)
    parent, children = runs(sweep, store)
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


def test_telling_twice_changes_nothing(few: Make, store: str) -> None:
    sweep = few()
    drain(sweep, store)
    before = {key: run.to_dictionary() for key, run in runs(sweep, store)[1].items()}
    drain(sweep, store)
    (sweep.directory / "tracking.json").unlink()
    assert pending(drain(sweep, store)) == 0
    assert_told_once(sweep, store)
    assert {key: run.to_dictionary() for key, run in runs(sweep, store)[1].items()} == before


def test_events_arrive_while_the_sweep_runs(made: Make, store: str) -> None:
    sweep = made()
    tracker = Tracker(sweep.ledger.parent / "ledger.jsonl", store, poll_s=0.02)
    sweep.directory.mkdir(parents=True)
    tracker.start()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.train("a", 0.05, outcome="")
    deadline = time.monotonic() + 60
    while len(ledger_left(tracker)) and time.monotonic() < deadline:
        time.sleep(0.02)
    _, children = runs(sweep, store)
    assert children["a"].info.status == "RUNNING"
    assert children["a"].data.tags["sweep.outcome"] == "running"
    sweep.train("a", 0.05, first=5)
    assert tracker.close() == 0
    assert_told_once(sweep, store)


def ledger_left(tracker: Tracker) -> list[Any]:
    return list(ledger.read(tracker._target.ledger_path, tracker._cursor.offset))


def test_an_interrupted_cell_goes_on_in_the_same_run(made: Make, store: str) -> None:
    sweep = made()
    sweep.open(["a", "b"])
    for key in ("a", "b"):
        sweep.cell(key, "ce", {"train.batch_size": ord(key)}, seed=1, gib=1.0)
    sweep.train("a", 0.05, epochs=2, outcome="interrupted", reason="the launch ended first")
    sweep.train("b", 0.05, epochs=2, outcome="")  # its driver is killed
    drain(sweep, store)
    _, children = runs(sweep, store)
    assert {key: run.info.status for key, run in children.items()} == {"a": "KILLED", "b": "RUNNING"}
    sweep.open(["a", "b"], launch=2)
    drain(sweep, store)
    parent, children = runs(sweep, store)
    assert {key: run.info.status for key, run in children.items()} == {"a": "KILLED", "b": "KILLED"}
    assert parent.info.status == "RUNNING"
    sweep.add("start", cell_key="a", attempt=2, node="here", pid=2, from_epoch=2)
    drain(sweep, store)
    assert runs(sweep, store)[1]["a"].info.status == "RUNNING"
    for key in ("a", "b"):
        sweep.train(key, 0.05, first=3, attempt=2)
    sweep.add("close", launch=2, reason="finished", remaining=0)
    drain(sweep, store)
    parent, children = runs(sweep, store)
    assert {key: run.info.status for key, run in children.items()} == {"a": "FINISHED", "b": "FINISHED"}
    assert {run.data.tags["sweep.attempt"] for run in children.values()} == {"2"}
    assert parent.info.status == "FINISHED"
    assert_told_once(sweep, store)


# ------------------------------------------------------------------------------------------------------- what breaks


@pytest.mark.parametrize(
    ("call", "nth"), [("create_run", 0), ("create_run", 2), ("log_batch", 0), ("log_batch", 2), ("set_terminated", 1)]
)
def test_a_crash_after_any_call_doubles_nothing(few: Make, store: str, call: str, nth: int) -> None:
    sweep = few()
    calls = [0]

    def crash(name: str, args: Any, named: Any) -> None:
        if name == call:
            calls[0] += 1
            if calls[0] == nth + 1:
                raise CrashError

    assert pending(drain(sweep, store, lambda uri: Proxy(uri, after=crash))) > 0
    assert pending(drain(sweep, store)) == 0
    assert_told_once(sweep, store)


@pytest.mark.parametrize("call", ["create_run", "log_batch"])
def test_a_lost_answer_doubles_nothing(few: Make, store: str, call: str) -> None:
    """The server did it, the answer never came; the same tracker goes on."""
    sweep = few()
    lost = Times(3, call, outage)
    assert pending(drain(sweep, store, lambda uri: Proxy(uri, after=lost))) == 0
    assert lost.left == 0
    assert_told_once(sweep, store)


def test_a_ghost_run_is_removed(made: Make, store: str) -> None:
    """An answer so late that the run it made was not there yet when it was looked for."""
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.train("a", 0.05)
    drain(sweep, store)
    parent, children = runs(sweep, store)
    mlflow = client.connect(store)
    identity = {key: value for key, value in children["a"].data.tags.items() if not key.startswith("mlflow.runName")}
    mlflow.create_run(parent.info.experiment_id, start_time=1, tags=identity)
    sweep.open(["a"], launch=2)
    drain(sweep, store)
    assert runs(sweep, store)[1]["a"].info.run_id == children["a"].info.run_id
    assert_told_once(sweep, store)


def test_an_outage_loses_nothing_and_is_told_once(few: Make, store: str, caplog: pytest.LogCaptureFixture) -> None:
    sweep = few()
    down = Times(5, "log_batch", outage)
    with caplog.at_level(logging.INFO):
        assert pending(drain(sweep, store, lambda uri: Proxy(uri, before=down))) == 0
    told = [record.getMessage() for record in caplog.records if record.name.startswith("sweeps")]
    assert [("does not answer" in line, "answers again" in line) for line in told] == [(True, False), (False, True)]
    assert_told_once(sweep, store)


def test_a_server_that_stays_down_stops_nothing(few: Make, store: str) -> None:
    sweep = few()

    def refuse(uri: str) -> Any:
        raise outage()

    tracker = drain(sweep, store, refuse, timeout_s=0.3)
    assert pending(tracker) == sum(1 for _ in ledger.read(sweep.ledger))
    assert pending(drain(sweep, store)) == 0
    assert_told_once(sweep, store)


def test_a_hanging_server_does_not_hold_the_end_up(few: Make, store: str) -> None:
    sweep = few()
    hang = threading.Event()
    tracker = drain(sweep, store, lambda uri: Proxy(uri, before=lambda *_: hang.wait(60)), timeout_s=0.3)
    assert pending(tracker) > 0
    hang.set()
    tracker._thread.join(60)
    assert not tracker._thread.is_alive(), "it must not go on when nobody waits"


def test_what_mlflow_refuses_is_put_aside(made: Make, store: str, caplog: pytest.LogCaptureFixture) -> None:
    sweep = made()
    sweep.open(["a", "b"])
    for key in ("a", "b"):
        sweep.cell(key, "ce", {"train.batch_size": ord(key)}, seed=1, gib=1.0)
    sweep.add("start", cell_key="a", attempt=1, node="here", pid=1, from_epoch=0)
    sweep.add("epoch", cell_key="a", attempt=1, epoch=1, metrics={"valid/ndcg@10": 0.1})
    sweep.train("b", 0.05)
    tracker = drain(sweep, store)
    assert (pending(tracker), tracker.dead_letters) == (0, 1)
    (line,) = (sweep.directory / "tracking.dead.jsonl").read_text(encoding="utf-8").splitlines()
    letter = json.loads(line)
    assert letter["part"] == "metrics"
    assert letter["payload"]["metrics"][0][:2] == ["valid/ndcg@10", 0.1]
    _, children = runs(sweep, store)
    assert children["a"].data.params["train.batch_size"] == "97", "one bad value costs only its kind"
    assert children["a"].data.tags["sweep.outcome"] == "running"
    assert stored(store, children["b"].info.run_id) == expected(sweep, "b")


def test_a_run_deleted_by_hand_blocks_nothing(made: Make, store: str) -> None:
    sweep = made()
    sweep.open(["a", "b"])
    for key in ("a", "b"):
        sweep.cell(key, "ce", {"train.batch_size": ord(key)}, seed=1, gib=1.0)
    tracker = Tracker(sweep.ledger, store, poll_s=0.02).start()
    sweep.train("a", 0.05, epochs=1, outcome="")
    deadline = time.monotonic() + 60
    while ledger_left(tracker) and time.monotonic() < deadline:
        time.sleep(0.02)
    client.connect(store).delete_run(runs(sweep, store)[1]["a"].info.run_id)
    sweep.train("a", 0.05, first=2)
    sweep.train("b", 0.05)
    assert tracker.close() == 0
    assert tracker.dead_letters > 0
    _, children = runs(sweep, store)
    assert stored(store, children["b"].info.run_id) == expected(sweep, "b")


def test_an_emptied_store_hears_everything_again(few: Make, store: str) -> None:
    sweep = few()
    drain(sweep, store)
    mlflow = client.connect(store)
    mlflow.delete_experiment(mlflow.get_experiment_by_name(sweep.name).experiment_id)
    assert pending(drain(sweep, store)) == 0
    again = type(sweep)(sweep.directory, name=f"{sweep.name}-{sweep.sweep_id[:8]}")
    assert_told_once(again, store)


def test_errors_of_our_own_end_the_tracking_and_nothing_else(
    few: Make, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Times(1, "log_batch", lambda: KeyError("ours"))
    assert pending(drain(few(), store, lambda uri: Proxy(uri, before=broken))) > 0
    assert "ended by its own error" in caplog.text


def test_which_errors_can_be_mended() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2 as codes
    from sqlalchemy.exc import IntegrityError, InterfaceError

    def verdict(error: Exception) -> type[BaseException] | None:
        def fail() -> None:
            raise error

        with pytest.raises((client.RefusedError, client.UnavailableError)) as caught:
            client.call(fail)
        return caught.type

    for code in (codes.INVALID_PARAMETER_VALUE, codes.RESOURCE_DOES_NOT_EXIST, codes.BAD_REQUEST):
        assert verdict(MlflowException("no", code)) is client.RefusedError
    for code in (
        codes.INTERNAL_ERROR,
        codes.TEMPORARILY_UNAVAILABLE,
        codes.REQUEST_LIMIT_EXCEEDED,
        codes.PERMISSION_DENIED,
        codes.UNAUTHENTICATED,
        codes.ENDPOINT_NOT_FOUND,
    ):
        assert verdict(MlflowException("later", code)) is client.UnavailableError
    assert verdict(ConnectionResetError()) is client.UnavailableError
    for cause, kind in (
        (InterfaceError("x", None, Exception()), client.UnavailableError),
        (IntegrityError("x", None, Exception()), client.RefusedError),
    ):
        error = MlflowException("from the database", codes.BAD_REQUEST)
        error.__cause__ = cause
        assert verdict(error) is kind
    with pytest.raises(ZeroDivisionError):
        client.call(lambda: 1 / 0)


# ------------------------------------------------------------------------------------------------------- one drainer


def test_two_drainers_take_turns(few: Make, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = few()
    gate = threading.Event()
    first = Tracker(
        sweep.ledger, store, poll_s=0.02, connect=lambda uri: Proxy(uri, before=lambda *_: gate.wait(60))
    ).start()
    deadline = time.monotonic() + 60
    while not is_tracked(sweep.directory) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sync.main([str(sweep.directory), "--tracking-uri", store]) == 2
    assert "just now" in capsys.readouterr().err
    second = Tracker(sweep.ledger, store, poll_s=0.02).start()
    gate.set()
    assert first.close() == 0
    assert second.close() == 0
    assert not is_tracked(sweep.directory)
    assert_told_once(sweep, store)


def test_sync_brings_a_store_up_to_date(few: Make, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = few()
    assert sync.main([str(sweep.directory), "--tracking-uri", store]) == 0
    assert "report: http://127.0.0.1:5000/#/experiments/" in capsys.readouterr().out
    assert_told_once(sweep, store)
    parent, children = runs(sweep, store)
    written = report.write(sweep.directory)
    front = {key for key, run in children.items() if run.data.tags.get("sweep.front") == "true"}
    assert front == set(written.front_keys)
    assert parent.data.tags["mlflow.note.content"].splitlines()[0] == written.verdict
    mlflow = client.connect(store)
    names = {item.path for item in mlflow.list_artifacts(parent.info.run_id, "report")}
    assert names == {f"report/{path.name}" for path in written.files}
    assert parent.info.artifact_uri.startswith(Path(links.sqlite_path(store) or "").parent.as_uri())


def test_sync_tells_what_is_missing(few: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep = few()
    nobody = "http://127.0.0.1:9"  # the discard port: nothing listens
    assert sync.main([str(sweep.directory), "--tracking-uri", nobody, "--timeout-s", "0.2"]) == 1
    assert "MLflow still lacks" in capsys.readouterr().err
    assert sync.main([str(tmp_path)]) == 2
    assert sync.main([str(sweep.directory), "--timeout-s", "0"]) == 2


def test_a_new_report_moves_the_fronts_tags(few: Make, store: str) -> None:
    sweep = few()
    for keys in (["ce-1", "sce-1"], ["sce-1", "bce-1"]):
        tracker = Tracker(sweep.ledger, store, poll_s=0.02).start()
        tracker.attach_report([], keys, "a verdict")
        assert tracker.close() == 0
    _, children = runs(sweep, store)
    tags = {key: run.data.tags["sweep.front"] for key, run in children.items() if "sweep.front" in run.data.tags}
    assert tags == {"ce-1": "false", "sce-1": "true", "bce-1": "true"}


# ------------------------------------------------------------------------------------------------------- addresses


def test_the_default_store_is_absolute(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = made()
    sweep.open([])
    monkeypatch.chdir(sweep.directory.parent.parent)
    tracker = Tracker(Path("runs") / sweep.name / "ledger.jsonl")
    assert tracker.uri == f"sqlite:///{sweep.directory.parent.resolve()}/mlflow.db"
    assert Tracker(sweep.ledger, "sqlite:///some.db").uri == f"sqlite:///{Path.cwd()}/some.db"
    assert links.artifact_root("sqlite:////a/b/mlflow.db", None) == "file:///a/b/mlartifacts"
    assert links.artifact_root("http://host:5000", None) is None
    assert links.artifact_root("http://host:5000", "s3://bucket/x") == "s3://bucket/x"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/x", "ftp://host", "sqlite://", "sqlite:///"])
def test_an_address_that_cannot_work_is_refused_at_once(made: Make, uri: str) -> None:
    with pytest.raises(UserError, match="tracking_uri: got"):
        Tracker(made().ledger, uri)


def test_a_password_is_never_shown(made: Make) -> None:
    uri = "postgresql+psycopg://user:s3cret@host:5432/mlflow"
    tracker = Tracker(made().ledger, uri)
    assert "s3cret" not in str(tracker.links())
    assert links.safe_uri(uri) == "postgresql+psycopg://user:***@host:5432/mlflow"
    assert links.safe_uri("http://user:s3cret@[broken") == "http://..."
    assert links.safe_uri("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_links_open_the_ready_made_view(few: Make, store: str) -> None:
    sweep = few()
    tracker = drain(sweep, store)
    parent, _ = runs(sweep, store)
    found = dict(tracker.links())
    assert "--backend-store-uri" in found["open MLflow"]
    key = links.view_key(sweep.sweep_id)
    assert f"viewStateShareKey={key}" in found["cells, best first"]
    assert parent.info.run_id in found["report"]
    experiment = client.connect(store).get_experiment_by_name(sweep.name)
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert parent.info.run_id in view["searchFilter"]
    assert view["orderByKey"] == "metrics.`best/ndcg_at_10`"
    assert view["compareRunCharts"][0]["xaxis"]["key"] == "memory/peak_gib"
    assert view["compareRunCharts"][1]["selectedParams"] == ["loss.name", "train.batch_size"]
    assert len(experiment.tags[f"mlflow.sharedViewState.{key}"]) < 20_000


# ------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("valid/ndcg_at_10", 0.0712345, 0.07123),
        ("memory/peak_gib", 3.14159, 3.142),
        ("memory/predicted_gib", 0.00041234, 0.000412),
        ("time/epoch_s", 12.34567, 12.346),
        ("best/elapsed_s", 100.00004, 100.0),
        ("best/epoch", 17.0, 17.0),
    ],
)
def test_values_have_the_digits_that_mean_something(name: str, value: float, told: float) -> None:
    assert rounded(name, value) == told


def test_what_is_not_finite_becomes_a_tag(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.add("start", cell_key="a", attempt=1, node="here", pid=1, from_epoch=0)
    metrics = {"train/loss": float("nan"), "valid/ndcg_at_10": 0.1, "time/epoch_s": float("inf")}
    sweep.add("epoch", cell_key="a", attempt=1, epoch=1, metrics=metrics)
    parent, child = Records().batches(event for event, _ in ledger.read(sweep.ledger))
    assert parent.key == PARENT
    assert [point.key for point in child.metrics] == ["valid/ndcg_at_10"]
    assert child.tags["sweep.non_finite"] == "time/epoch_s train/loss"


def test_long_texts_are_cut_with_a_mark(made: Make) -> None:
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.train("a", 0.05, outcome="error", reason="x" * 9000)
    _, child = Records().batches(event for event, _ in ledger.read(sweep.ledger))
    assert len(child.tags["sweep.reason"]) == 5000
    assert child.tags["sweep.reason"].endswith("…")


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """mlflow's loggers are the process's; leave them as they were."""
    names = ("mlflow", "alembic", "mlflow.store.db.utils")
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


# ------------------------------------------------------------------------------------------------------- a real server


class Server:
    """`mlflow server` on a port of its own; killed and started again it keeps its file."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.store = f"sqlite:///{directory / 'mlflow.db'}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self._port)]
        command += ["--backend-store-uri", self.store, "--artifacts-destination", str(self._directory / "artifacts")]
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail((self._directory / "server.log").read_text(encoding="utf-8"))

    def kill(self) -> None:
        """The whole family, by its own process group."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path)
    yield one
    one.kill()


@pytest.mark.slow
def test_a_real_server_may_come_late_die_and_return(full: Make, server: Server) -> None:
    sweep = full()
    tracker = Tracker(sweep.ledger, server.uri, poll_s=0.05, first_wait_s=0.2).start()
    time.sleep(1.0)  # nobody there yet
    server.start()
    server.wait()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if len(runs(sweep, server.store)[1]) > 5:
                break
        except (AttributeError, ValueError):
            pass  # no experiment, no parent yet
        time.sleep(0.1)
    server.kill()
    half = len(runs(sweep, server.store)[1])
    assert 5 < half < 44, "killed too late to show anything"
    time.sleep(1.0)
    server.start()
    server.wait()
    written = report.write(sweep.directory)
    tracker.attach_report(written.files, written.front_keys, written.verdict)
    assert tracker.close(240) == 0
    assert tracker.dead_letters == 0
    assert_told_once(sweep, server.store)
    parent, _ = runs(sweep, server.store)
    names = {item.path for item in client.connect(server.uri).list_artifacts(parent.info.run_id, "report")}
    assert "report/pareto.html" in names
