"""A real MLflow server that comes late, is killed and returns."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps import report
from sweeps.tracking import Tracker, client

Make = Callable[..., Any]


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
def test_a_real_server_may_come_late_die_and_return(full: Make, server: Server, store_at: Any) -> None:
    sweep, store = full(), store_at(server.store)
    tracker = Tracker(sweep.ledger, server.uri, poll_s=0.05, first_wait_s=0.2).start()
    time.sleep(1.0)  # nobody there yet
    server.start()
    server.wait()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if len(store.runs(sweep)[1]) > 5:
                break
        except (AttributeError, ValueError):
            pass  # no experiment, no parent yet
        time.sleep(0.1)
    server.kill()
    half = len(store.runs(sweep)[1])
    assert 5 < half < 44, "killed too late to show anything"
    time.sleep(1.0)
    server.start()
    server.wait()
    written = report.write(sweep.directory)
    tracker.attach_report(written.files, written.front_keys, written.verdict)
    assert tracker.close(240) == 0
    assert tracker.dead_letters == 0
    store.assert_told_once(sweep)
    parent, _ = store.runs(sweep)
    names = {item.path for item in client.connect(server.uri).list_artifacts(parent.info.run_id, "report")}
    assert "report/pareto.html" in names
