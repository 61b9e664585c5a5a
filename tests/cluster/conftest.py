"""A real Ray head on the loopback interface, a tiny sweep for it, and free ports."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
START_S = 240.0
"""A bound for what never happens on a machine in order, not a measurement."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Any, why: str, seconds: float = START_S) -> Any:
    """The first true value of `what()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:g} s in vain: {why}")


@dataclass(frozen=True)
class Head:
    """A cluster of one node; `environment` is that of whoever may use it."""

    address: str
    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """As docs/operations.md starts one for this machine alone. Needs ray[default] for its job server."""
    pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed (extra `cluster`)")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COV")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONPATH": str(ROOT),
    }
    port, dashboard = free_port(), free_port()
    folder = tmp_path_factory.mktemp("ray")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--num-cpus", "2"]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--include-dashboard", "true"]
    command += ["--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())]
    command += ["--object-store-memory", "100000000"]
    # A short path: Ray's sockets lie in it, and their names are limited to 107 characters.
    temporary = Path(f"/tmp/ray-test-{os.getpid()}")
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--temp-dir", str(temporary)], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: process.poll() is not None or _listens(dashboard), f"the head, see {folder / 'head.log'}")
        assert process.poll() is None, (folder / "head.log").read_text(encoding="utf-8")
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """An S3 server on the loopback interface: its address."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra `s3`)")
    server = pytest.importorskip("moto.server", reason="moto is not installed (extra `dev`)")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


AWS = {
    "AWS_ACCESS_KEY_ID": "c4n4ry-access-key",
    "AWS_SECRET_ACCESS_KEY": "c4n4ry-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


@pytest.fixture
def s3(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `sweeps`, as s3fs sees it; the environment says how to reach it."""
    import boto3
    import s3fs

    for name, value in {**AWS, "AWS_ENDPOINT_URL": moto_server}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = boto3.resource("s3").Bucket("sweeps")
    bucket.create()
    yield s3fs.S3FileSystem(use_listings_cache=False)
    bucket.objects.delete()
    bucket.delete()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def system() -> Iterator[Any]:
    """The store behind memory:// addresses, empty."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    yield found
    found.store.clear()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A search space of two cells of 80 epochs, a few milliseconds each, and its data, in a folder of their own."""
    users, length = 60, 8
    table = {
        "user_id": [user for user in range(users) for _ in range(length)],
        "item_id": [(7 * user + 3 * place) % 40 for user in range(users) for place in range(length)],
        "order": [place for _ in range(users) for place in range(length)],
    }
    pq.write_table(pa.table(table), tmp_path / "tiny.parquet")
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""\
name: tiny
data: {{path: {tmp_path / "tiny.parquet"}, split: leave_one_out}}
model: {{name: sasrec, max_length: 8, hidden_size: 8, n_blocks: 1, n_heads: 1, dropout: 0.1}}
train: {{epochs: 80, patience: null, valid_every: 40, learning_rate: 1e-3, batch_size: 64}}
loss: {{name: ce}}
grid: {{}}
seeds: [1, 2]
scheduler: {{name: fifo}}
resources: {{cpus_per_trial: 1}}
""",
        encoding="utf-8",
    )
    return path
