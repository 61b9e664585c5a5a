"""An MLflow server for the hosts of a drill, and its database: PostgreSQL where there is one, else SQLite."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from hosts import wait

OWNER = "postgres"
SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def without_postgres() -> str:
    """Why the database cannot be PostgreSQL here; empty if it can."""
    if not shutil.which("postgres"):
        return "no postgres on the PATH"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed"
    return ""


class Store:
    """MLflow behind HTTP on an address of this machine. `kind` says what keeps its data."""

    def __init__(self, directory: Path, address: str, name: str) -> None:
        self.kind = "SQLite" if without_postgres() else "PostgreSQL"
        self.uri = f"http://{address}:{_free_port(address)}"
        self._directory = directory
        # Not under the test's own folder: the database's owner could not reach into that one.
        self._data = Path("/tmp") / f"{name}-pg"
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Store:
        try:
            if self.kind == "PostgreSQL":
                self._create()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._data, ignore_errors=True)

    def start(self) -> None:
        """Database, then server; returns when both answer."""
        if self.kind == "PostgreSQL":
            self._popen(["postgres", "-D", str(self._data / "data"), "-k", str(self._data), "-c", "listen_addresses="])
            wait(lambda: self._psql("select 1").returncode == 0, "PostgreSQL")
            backend = f"postgresql+psycopg://{self._owner}@/postgres?host={self._data}"
        else:
            backend = f"sqlite:///{self._directory / 'server.db'}"
        host, _, port = self.uri.removeprefix("http://").rpartition(":")
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--host", host]
        command += ["--port", port, "-w", "1", "--artifacts-destination", str(self._directory / "artifacts")]
        self._popen(command, as_owner=False)
        wait(self._answers, "the MLflow server")

    def kill(self) -> None:
        """Server and database at once, by SIGKILL."""
        doomed = []
        for process in self._running:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                doomed += [parent, *parent.children(recursive=True)]
        for victim in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        for process in self._running:
            process.wait()
        _, left = psutil.wait_procs(doomed, timeout=30)
        assert not left, f"processes {left} do not die"
        self._running.clear()

    @property
    def _owner(self) -> str:
        return OWNER if os.geteuid() == 0 else Path("~").expanduser().owner()

    def _create(self) -> None:
        self._data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(self._data, OWNER)
        initdb = Path(shutil.which("postgres") or "").resolve().with_name("initdb")
        command = [str(initdb), "-D", str(self._data / "data"), "-U", self._owner, "--auth=trust", "--no-sync"]
        self._popen(command).wait()

    def _psql(self, query: str) -> subprocess.CompletedProcess[str]:
        command = ["psql", "-h", str(self._data), "-U", self._owner, "-d", "postgres", "-c", query]
        return subprocess.run(command, capture_output=True, text=True)

    def _popen(self, command: list[str], *, as_owner: bool = True) -> subprocess.Popen[bytes]:
        user = OWNER if as_owner and os.geteuid() == 0 else None
        folder = self._data if user else self._directory
        with (self._directory / "store.log").open("a") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **SETTINGS},
                cwd=folder,
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as reply:
            return bool(reply.status == 200)
        return False


@contextlib.contextmanager
def full(directory: Path, megabytes: int = 48) -> Iterator[Path]:
    """A small file system of its own on the directory; the file to fill it with."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)], check=True)
    try:
        yield directory / "filler"
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(filler: Path) -> None:
    """Write until there is no room left, and once more for what was freed meanwhile."""
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as place:
        return int(place.getsockname()[1])
