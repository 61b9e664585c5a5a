"""MLflow on a real PostgreSQL: told by the tracker through `mlflow server`, and by the database's own address."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.tracking.conftest import Store, Value

pytestmark = pytest.mark.slow
PASSWORD = "c4n4ry-password"
START_S = 240.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while not ready():
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
        assert time.monotonic() < end, log.read_text(encoding="utf-8", errors="replace")
        time.sleep(0.05)


class Database:
    """One PostgreSQL cluster on the loopback interface, with a user `mlflow` who needs a password."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.log = folder / "postgres.log"
        # PostgreSQL refuses to run as root, and pytest's folders are closed to others.
        self._user: dict[str, Any] = {"user": _anybody()} if os.geteuid() == 0 else {}
        if self._user:
            shutil.chown(folder, self._user["user"])
        (folder / "password").write_text(PASSWORD, encoding="utf-8")
        initdb = ["initdb", "--username", "mlflow", "--pwfile", str(folder / "password"), "--auth", "scram-sha-256"]
        initdb += ["--no-sync", "--encoding", "UTF8", "--locale", "C", "--pgdata", str(folder / "data")]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **self._user)
        self.start()

    def start(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        command = ["postgres", "-D", str(self.folder / "data")]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._user)
        wait_for(self._answers, self._process, self.log)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.uri("postgresql", PASSWORD) + "?connect_timeout=5").close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # a fast shutdown: sessions are ended
        self._process.wait(60)

    def uri(self, scheme: str, password: str = "") -> str:
        return f"{scheme}://mlflow{password and ':' + password}@127.0.0.1:{self.port}/postgres"


def _anybody() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra `postgres`)")
    if not (shutil.which("postgres") and shutil.which("initdb")):
        pytest.skip("there is no postgres on the PATH")
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        running = Database(Path(folder))
        yield running
        running.stop()


@pytest.fixture(scope="module")
def server(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow server` as docker/compose.yaml starts it: the password in libpq's own variable."""
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database.uri("postgresql+psycopg")]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "PGPASSWORD": PASSWORD}, start_new_session=True
        )

    def healthy() -> bool:
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)
        except OSError:
            return False

    try:
        wait_for(healthy, process, log)
        yield f"http://127.0.0.1:{port}"
        assert PASSWORD not in log.read_text(encoding="utf-8", errors="replace")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


class PostgresStore(Store):
    """The tables as psycopg reads them."""

    database: Database

    def stored(self, run_id: str) -> list[Value]:
        import psycopg

        with psycopg.connect(self.database.uri("postgresql", PASSWORD)) as connection:
            rows = connection.execute("select key, value, timestamp, step from metrics where run_uuid = %s", (run_id,))
            return sorted(rows.fetchall())


def store(database: Database, uri: str) -> PostgresStore:
    made = PostgresStore(uri)
    object.__setattr__(made, "database", database)
    return made


def test_told_through_a_server_then_by_the_database_and_once_each(
    database: Database, server: str, full: Callable[..., Any]
) -> None:
    sweep = full(close=False)
    through = store(database, server)
    assert through.drain(sweep).pending == 0
    through.assert_told_once(sweep)
    # Another store to the tracker, which begins at the ledger's first event: it must find the runs that are there.
    sweep.add("close", launch=1, reason="interrupted", remaining=2)
    direct = store(database, database.uri("postgresql+psycopg", PASSWORD))
    drained = direct.drain(sweep)
    assert (drained.pending, drained.tracker.dead_letters) == (0, 0)
    direct.assert_told_once(sweep)
    written = [path for path in sweep.directory.parent.rglob("*") if path.is_file()]
    assert {"ledger.jsonl", "tracking.json"} <= {path.name for path in written}
    assert [path for path in written if PASSWORD.encode() in path.read_bytes()] == []
    assert PASSWORD not in str(drained.tracker.links())


def test_the_database_restarts_while_a_sweep_is_told(
    database: Database, server: str, full: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    sweep = full(name="restarted")
    through = store(database, server)
    stopped: list[str] = []

    def restart(name: str, args: Any, named: Any) -> None:
        if name == "log_batch" and not stopped:
            stopped.append(name)
            database.stop()
            database.start()

    drained = through.drain(sweep, connect=Store.proxy(restart))
    assert stopped
    assert (drained.pending, drained.tracker.dead_letters) == (0, 0)
    through.assert_told_once(sweep)
    assert PASSWORD not in caplog.text
