"""Who may use a Ray that is started or documented here: nobody without its token, nobody from another machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from seqrec.errors import UserError
from sweeps import cluster
from tests.cluster.conftest import Head


def refused(head: Head, storage: Path, space: Path, environment: dict[str, str]) -> str:
    """What the command says, with this environment, against the head."""
    foreign = {name: value for name, value in head.environment.items() if not name.startswith("RAY_AUTH")}
    result = subprocess.run(
        [sys.executable, "-m", "sweeps.run", str(space), "--address", head.address, "--storage", str(storage)],
        env={**foreign, "HOME": str(storage.parent), **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    return result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"RAY_AUTH_TOKEN": "c4n4ry-not-the-token"},
        {},
        {"RAY_AUTH_MODE": "disabled"},
    ],
    ids=["wrong", "none", "disabled"],
)
def test_a_driver_without_the_token_is_refused_with_one_error(
    environment: dict[str, str], head: Head, tmp_path: Path, tiny: Path
) -> None:
    said = refused(head, tmp_path / "runs", tiny, environment)
    [line] = said.splitlines()
    assert line.startswith(
        f"error: --address: got '{head.address}'; expected a Ray cluster whose token this process has"
    )
    assert "RAY_AUTH_TOKEN_PATH" in line
    assert "c4n4ry" not in line
    left = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert [path.name for path in left if path.stat().st_size] == ["ledger.lock"], "nothing was begun"


@pytest.mark.slow
def test_the_embedded_ray_listens_to_this_machine_alone(tmp_path: Path) -> None:
    with cluster.session(None, num_cpus=1, data_bytes=0, log_file=tmp_path / "ray.log"):
        sockets = {
            (process.name(), connection.laddr.ip)
            for process in psutil.Process().children(recursive=True)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert {name for name, _ in sockets} >= {"gcs_server", "raylet"}
    assert {address.removeprefix("::ffff:") for _, address in sockets} == {"127.0.0.1"}


def test_an_embedded_ray_is_never_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with (
        pytest.raises(UserError, match="RAY_AUTH_MODE: got 'disabled'; expected token"),
        cluster.session(None, num_cpus=1, data_bytes=0, log_file=tmp_path / "ray.log"),
    ):
        pass


def test_a_cluster_is_asked_for_its_token_unless_told_otherwise() -> None:
    script = (
        "import os; os.environ.pop('RAY_AUTH_MODE', None); import sweeps.cluster; print(os.environ['RAY_AUTH_MODE'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "token"
