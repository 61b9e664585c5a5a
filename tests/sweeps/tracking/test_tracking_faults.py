"""Whatever breaks on the way, MLflow hears everything exactly once."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sweeps import ledger
from sweeps.tracking import Tracker, client
from sweeps.tracking.cursor import Cursor

Make = Callable[..., Any]


class CrashError(Exception):
    """The process is gone: whatever was not on disk is lost."""


@pytest.mark.parametrize(
    ("call", "nth"), [("create_run", 0), ("create_run", 2), ("log_batch", 0), ("log_batch", 2), ("set_terminated", 1)]
)
def test_a_crash_after_any_call_doubles_nothing(few: Make, store: Any, call: str, nth: int) -> None:
    sweep = few()
    calls = [0]

    def crash(name: str, args: Any, named: Any) -> None:
        if name == call:
            calls[0] += 1
            if calls[0] == nth + 1:
                raise CrashError

    assert store.drain(sweep, store.proxy(after=crash)).pending > 0
    assert store.drain(sweep).pending == 0
    store.assert_told_once(sweep)


@pytest.mark.parametrize("call", ["create_run", "log_batch"])
def test_a_lost_answer_doubles_nothing(few: Make, store: Any, call: str) -> None:
    """The server did it, the answer never came; the same tracker goes on."""
    sweep = few()
    lost = store.failing(3, call)
    assert store.drain(sweep, store.proxy(after=lost)).pending == 0
    assert lost.left == 0
    store.assert_told_once(sweep)


def test_a_ghost_run_is_removed(made: Make, store: Any) -> None:
    """An answer so late that the run it made was not there yet when it was looked for."""
    sweep = made()
    sweep.open(["a"])
    sweep.cell("a", "ce", {}, seed=1, gib=1.0)
    sweep.train("a", 0.05)
    store.drain(sweep)
    parent, children = store.runs(sweep)
    mlflow = client.connect(store.uri)
    identity = {key: value for key, value in children["a"].data.tags.items() if not key.startswith("mlflow.runName")}
    mlflow.create_run(parent.info.experiment_id, start_time=1, tags=identity)
    sweep.open(["a"], launch=2)
    store.drain(sweep)
    assert store.runs(sweep)[1]["a"].info.run_id == children["a"].info.run_id
    store.assert_told_once(sweep)


def test_an_outage_loses_nothing_and_is_told_once(few: Make, store: Any, caplog: pytest.LogCaptureFixture) -> None:
    sweep = few()
    down = store.failing(5, "log_batch")
    with caplog.at_level(logging.INFO):
        assert store.drain(sweep, store.proxy(before=down)).pending == 0
    told = [record.getMessage() for record in caplog.records if record.name.startswith("sweeps")]
    assert [("does not answer" in line, "answers again" in line) for line in told] == [(True, False), (False, True)]
    store.assert_told_once(sweep)


def test_a_full_disk_under_the_cursor_ends_no_tracking(
    few: Make, store: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = few()
    save, calls = Cursor.save, [0]

    def full(self: Cursor, *arguments: Any) -> None:
        calls[0] += 1
        if calls[0] <= 3:
            raise OSError(28, "No space left on device")
        save(self, *arguments)

    monkeypatch.setattr(Cursor, "save", full)
    assert store.drain(sweep).pending == 0
    told = [record.getMessage() for record in caplog.records if record.name.startswith("sweeps")]
    assert [("cannot be followed ([Errno 28]" in line, "answers again" in line) for line in told] == [
        (True, False),
        (False, True),
    ]
    store.assert_told_once(sweep)


def test_a_server_that_stays_down_stops_nothing(few: Make, store: Any) -> None:
    sweep = few()

    def refuse(uri: str) -> Any:
        raise ConnectionRefusedError

    told = store.drain(sweep, refuse, timeout_s=0.3)
    assert told.pending == sum(1 for _ in ledger.read(sweep.ledger))
    assert store.drain(sweep).pending == 0
    store.assert_told_once(sweep)


def test_a_hanging_server_does_not_hold_the_end_up(few: Make, store: Any) -> None:
    sweep = few()
    hang = threading.Event()
    told = store.drain(sweep, store.proxy(before=lambda *_: hang.wait(60)), timeout_s=0.3)
    assert told.pending > 0
    hang.set()
    told.tracker._thread.join(60)
    assert not told.tracker._thread.is_alive(), "it must not go on when nobody waits"


def test_what_mlflow_refuses_is_put_aside(made: Make, store: Any, caplog: pytest.LogCaptureFixture) -> None:
    sweep = made()
    sweep.open(["a", "b"])
    for key in ("a", "b"):
        sweep.cell(key, "ce", {"train.batch_size": ord(key)}, seed=1, gib=1.0)
    sweep.add("start", cell_key="a", attempt=1, node="here", pid=1, from_epoch=0)
    sweep.add("epoch", cell_key="a", attempt=1, epoch=1, metrics={"valid/ndcg@10": 0.1})
    sweep.train("b", 0.05)
    told = store.drain(sweep)
    assert (told.pending, told.tracker.dead_letters) == (0, 1)
    (line,) = (sweep.directory / "tracking.dead.jsonl").read_text(encoding="utf-8").splitlines()
    letter = json.loads(line)
    assert letter["part"] == "metrics"
    assert letter["payload"]["metrics"][0][:2] == ["valid/ndcg@10", 0.1]
    _, children = store.runs(sweep)
    assert children["a"].data.params["train.batch_size"] == "97", "one bad value costs only its kind"
    assert children["a"].data.tags["sweep.outcome"] == "running"
    assert store.stored(children["b"].info.run_id) == store.expected(sweep, "b")


def test_a_run_deleted_by_hand_blocks_nothing(made: Make, store: Any) -> None:
    sweep = made()
    sweep.open(["a", "b"])
    for key in ("a", "b"):
        sweep.cell(key, "ce", {"train.batch_size": ord(key)}, seed=1, gib=1.0)
    tracker = Tracker(sweep.ledger, store.uri, poll_s=0.02).start()
    sweep.train("a", 0.05, epochs=1, outcome="")
    deadline = time.monotonic() + 60
    while store.left(tracker) and time.monotonic() < deadline:
        time.sleep(0.02)
    client.connect(store.uri).delete_run(store.runs(sweep)[1]["a"].info.run_id)
    sweep.train("a", 0.05, first=2)
    sweep.train("b", 0.05)
    assert tracker.close() == 0
    assert tracker.dead_letters > 0
    _, children = store.runs(sweep)
    assert store.stored(children["b"].info.run_id) == store.expected(sweep, "b")


def test_an_emptied_store_hears_everything_again(few: Make, store: Any) -> None:
    sweep = few()
    store.drain(sweep)
    mlflow = client.connect(store.uri)
    mlflow.delete_experiment(mlflow.get_experiment_by_name(sweep.name).experiment_id)
    assert store.drain(sweep).pending == 0
    again = type(sweep)(sweep.directory, name=f"{sweep.name}-{sweep.sweep_id[:8]}")
    store.assert_told_once(again)


def test_errors_of_our_own_end_the_tracking_and_nothing_else(
    few: Make, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken = store.failing(1, "log_batch", KeyError("ours"))
    assert store.drain(few(), store.proxy(before=broken)).pending > 0
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
