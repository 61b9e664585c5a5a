"""One SQLite store for all tests of tracking, for making its tables takes seconds; a sweep of its own for each test."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from sweeps import ledger
from sweeps.tracking import Tracker, client, links
from sweeps.tracking.records import rounded

Make = Callable[..., Any]
Hook = Callable[[str, Any, Any], None]
Value = tuple[str, float, int, int]
"""(name, value, time, step)."""


class _Proxy:
    """An MlflowClient whose calls pass `before` and `after` first and last; either may raise."""

    def __init__(self, uri: str, before: Hook | None, after: Hook | None) -> None:
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


@dataclass
class _Failing:
    """Raises the given number of times, then never again."""

    left: int
    name: str
    error: BaseException

    def __call__(self, name: str, args: Any, named: Any) -> None:
        if name == self.name and self.left:
            self.left -= 1
            raise self.error


@dataclass(frozen=True)
class Drained:
    """What a tracker left behind."""

    tracker: Tracker
    pending: int


@dataclass(frozen=True)
class Store:
    """A store by its address, and what it has of a sweep."""

    uri: str

    def drain(self, sweep: Any, connect: Callable[[str], Any] | None = None, timeout_s: float = 120.0) -> Drained:
        """Start a tracker and close it."""
        tracker = Tracker(sweep.ledger, self.uri, connect=connect, poll_s=0.02, first_wait_s=0.02).start()
        return Drained(tracker, tracker.close(timeout_s))

    @staticmethod
    def proxy(before: Hook | None = None, after: Hook | None = None) -> Callable[[str], Any]:
        return lambda uri: _Proxy(uri, before, after)

    @staticmethod
    def failing(times: int, call: str, error: BaseException | None = None) -> _Failing:
        """A hook; without an error of its own it fails as an unreachable server does."""
        from mlflow.exceptions import MlflowException

        return _Failing(times, call, error or MlflowException("API request failed: connection refused"))

    @staticmethod
    def left(tracker: Tracker) -> list[Any]:
        """Events that the tracker has not told yet."""
        return list(ledger.read(tracker._target.ledger_path, tracker._cursor.offset))

    def runs(self, sweep: Any) -> tuple[Any, dict[str, Any]]:
        """(parent, children by cell key); fails on a second run of a cell."""
        mlflow = client.connect(self.uri)
        experiment = mlflow.get_experiment_by_name(sweep.name)
        found = mlflow.search_runs([experiment.experiment_id], max_results=1000)
        children = [run for run in found if "sweep.cell_key" in run.data.tags]
        (parent,) = [run for run in found if run not in children]
        keys = Counter(run.data.tags["sweep.cell_key"] for run in children)
        assert set(keys.values()) <= {1}, f"doubled: {keys}"
        assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
        return parent, {run.data.tags["sweep.cell_key"]: run for run in children}

    def stored(self, run_id: str) -> list[Value]:
        """Every value of a run, as the tables have it."""
        path = links.sqlite_path(self.uri)
        assert path
        connection = sqlite3.connect(path)
        try:
            rows = connection.execute("select key, value, timestamp, step from metrics where run_uuid = ?", (run_id,))
            return sorted(rows)
        finally:
            connection.close()

    @staticmethod
    def expected(sweep: Any, cell_key: str) -> list[Value]:
        """What the ledger has to tell of a cell, at the digits that are told."""
        values: list[Value] = []
        for event, _ in ledger.read(sweep.ledger):
            if event.get("cell_key") == cell_key and event["type"] in ("epoch", "end"):
                step = int(event["epoch" if event["type"] == "epoch" else "epochs"])
                values += [
                    (str(name), rounded(name, value), int(event["time_ms"]), step)
                    for name, value in event["metrics"].items()
                    if event["type"] == "end" or name == "valid/ndcg_at_10" or not name.startswith("valid/")
                ]
        return sorted(values)

    def assert_told_once(self, sweep: Any) -> None:
        """Every cell that started has one run, with the ledger's values and no other."""
        _, children = self.runs(sweep)
        started = {e["cell_key"] for e, _ in ledger.read(sweep.ledger) if e["type"] in ("start", "end")}
        assert children.keys() == started
        for key, run in children.items():
            assert self.stored(run.info.run_id) == self.expected(sweep, key), key


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = f"sqlite:///{tmp_path_factory.mktemp('a store') / 'mlflow.db'}"
    client.connect(uri)
    return Store(uri)


@pytest.fixture
def store_at() -> type[Store]:
    """For a test that needs a store of its own."""
    return Store


@pytest.fixture
def made(made: Make, request: pytest.FixtureRequest) -> Make:
    """Sweeps of their own in the shared store."""

    def make(**fields: Any) -> Any:
        name = request.node.name.replace("[", "-").rstrip("]")
        return made(**({"name": name, "sweep_id": f"id-{name}"} | fields))

    return make


@pytest.fixture
def few(made: Make) -> Make:
    """A small sweep with ends of several kinds."""

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


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """mlflow's loggers are the process's; leave them as they were."""
    names = ("mlflow", "alembic", "mlflow.store.db.utils")
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
