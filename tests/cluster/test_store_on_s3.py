"""A sweep whose data and results are in an S3 store, of a real server: interrupted on one machine, finished on another,
and no secret in anything that either of them, or the store, keeps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sweeps.errors import LedgerBusy
from sweeps.ledger import read
from sweeps.mirror import Mirror, local_folder
from tests.cluster.conftest import AWS, ROOT, wait_for

pytestmark = pytest.mark.slow
STORAGE = "s3://sweeps/results"


class Machine:
    """A place of its own for what the driver keeps, and for temporary files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "tmp").mkdir(parents=True)
        self.environment = {"XDG_CACHE_HOME": str(folder), "TMPDIR": str(folder / "tmp"), "RAY_TMPDIR": "/tmp"}
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        self.ledger = local_folder(STORAGE) / "tiny" / "ledger.jsonl"

    def sweep(self, space: Path, data: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sweeps.run", str(space), "--storage", STORAGE, "--data", data]
        return subprocess.Popen(
            [*command, "--num-cpus", "1", *options],
            env={**os.environ, **self.environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event, _ in read(self.ledger) if event["type"] == kind]


def test_interrupted_here_and_finished_there(
    s3: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_file(str(tmp_path / "tiny.parquet"), "sweeps/data/tiny.parquet")
    key, secret = AWS["AWS_ACCESS_KEY_ID"], AWS["AWS_SECRET_ACCESS_KEY"]
    data = "s3://sweeps/data/tiny.parquet"

    one = Machine(tmp_path / "one", monkeypatch)
    first = one.sweep(tiny, data, "--no-tracking")
    wait_for(lambda: len(one.events("epoch")) > 20 or first.poll() is not None, "epochs of the first launch")
    with pytest.raises(LedgerBusy, match=f"pid {first.pid} on "):
        Mirror(STORAGE, "tiny", tmp_path / "elsewhere")
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=400)
    assert first.returncode == 130, said
    assert f"in the store: {STORAGE}/tiny" in said
    assert s3.find("sweeps/results/tiny/lease") == []
    assert len(s3.find("sweeps/results/tiny/checkpoints")) == 1, "of the one cell that ran"

    two = Machine(tmp_path / "two", monkeypatch)
    second = two.sweep(tiny, data, "--tracking-uri", f"sqlite:///{two.folder}/mlflow.db")
    again, _ = second.communicate(timeout=400)
    assert second.returncode == 0, again
    assert two.ledger.read_bytes().startswith(one.ledger.read_bytes())
    assert max(event["from_epoch"] for event in two.events("start")) > 0, "the cell began anew on the other machine"
    told = Counter((event["cell_key"], event["epoch"]) for event in two.events("epoch"))
    assert len(told) == 2 * 80
    assert set(told.values()) == {1}
    pieces = sorted(s3.find("sweeps/results/tiny/ledger"), key=lambda path: path.rpartition("/")[2].split(".")[1])
    assert len(pieces) == 2
    assert b"".join(s3.cat_file(path) for path in pieces) == two.ledger.read_bytes()
    assert s3.exists("sweeps/results/tiny/report/pareto.html")
    assert s3.find("sweeps/results/tiny/checkpoints") == []

    kept = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept |= {path: s3.cat_file(path) for path in s3.find("sweeps")}
    kept |= {"said": said.encode(), "again": again.encode()}
    assert any(name.endswith("mlflow.db") for name in kept)
    for word in (key, secret, os.environ["RAY_AUTH_TOKEN"]):
        assert [name for name, content in kept.items() if word.encode() in content] == []
