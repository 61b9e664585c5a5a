"""A sweep as a Ray job, by the documented command: submitted, watched, stopped in its middle, submitted again."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sweeps.ledger import FILE_NAME, read
from tests.cluster.conftest import ROOT, Head, wait_for

pytestmark = pytest.mark.slow


def submit(head: Head, name: str, space: Path, storage: Path) -> None:
    job = ["job", "submit", "--address", head.dashboard, "--submission-id", name, "--no-wait"]
    job += ["--runtime-env", str(ROOT / "docker" / "job.yaml"), "--"]
    sweep = ["-m", "sweeps.run", str(space), "--address", "auto", "--storage", str(storage), "--no-tracking"]
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *job, sys.executable, *sweep],
        env=head.environment,
        capture_output=True,
        check=True,
        timeout=400,
    )


def events(storage: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event, _ in read(storage / "tiny" / FILE_NAME) if event["type"] == kind]


def test_stopped_and_submitted_again(head: Head, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    storage = tmp_path / "runs"
    ask = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    client = JobSubmissionClient(head.dashboard, headers=ask)

    submit(head, "first", tiny, storage)
    wait_for(lambda: len(events(storage, "epoch")) > 20, "epochs of the first job")
    client.stop_job("first")
    wait_for(lambda: client.get_job_status("first").is_terminal(), "the end of the stopped job")
    assert client.get_job_status("first") is JobStatus.STOPPED
    said = client.get_job_logs("first")
    assert "interrupted: writing down where everything stands" in said
    assert "2 of 2 cells are left" in said
    [close] = events(storage, "close")
    assert (close["reason"], close["remaining"]) == ("interrupted", 2)
    assert (storage / "tiny" / "report" / "pareto.html").exists()

    submit(head, "second", tiny, storage)
    wait_for(lambda: client.get_job_status("second").is_terminal(), "the end of the second job")
    assert client.get_job_status("second") is JobStatus.SUCCEEDED, client.get_job_logs("second")
    epochs = Counter((event["cell_key"], event["epoch"]) for event in events(storage, "epoch"))
    assert len(epochs) == 2 * 80
    assert set(epochs.values()) == {1}, "an epoch was told twice"
    assert [event["outcome"] for event in events(storage, "end") if event["outcome"] != "interrupted"] == ["done"] * 2
    assert max(event["from_epoch"] for event in events(storage, "start")) > 0, "the second job began anew"
    assert events(storage, "close")[-1]["reason"] == "finished"
