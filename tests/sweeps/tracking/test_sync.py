"""`sweeps.sync`, and that only one process tells MLflow of a sweep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps import report, sync
from sweeps.tracking import Tracker, client, is_tracked, links

Make = Callable[..., Any]


def test_two_drainers_take_turns(few: Make, store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = few()
    gate = threading.Event()
    first = Tracker(sweep.ledger, store.uri, poll_s=0.02, connect=store.proxy(before=lambda *_: gate.wait(60))).start()
    deadline = time.monotonic() + 60
    while not is_tracked(sweep.directory) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sync.main([str(sweep.directory), "--tracking-uri", store.uri]) == 2
    assert "just now" in capsys.readouterr().err
    second = Tracker(sweep.ledger, store.uri, poll_s=0.02).start()
    gate.set()
    assert first.close() == 0
    assert second.close() == 0
    assert not is_tracked(sweep.directory)
    store.assert_told_once(sweep)


def test_sync_brings_a_store_up_to_date(few: Make, store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = few()
    assert sync.main([str(sweep.directory), "--tracking-uri", store.uri]) == 0
    assert "report in MLflow: http://127.0.0.1:5000/#/experiments/" in capsys.readouterr().out
    store.assert_told_once(sweep)
    parent, children = store.runs(sweep)
    written = report.write(sweep.directory)
    front = {key for key, run in children.items() if run.data.tags.get("sweep.front") == "true"}
    assert front == set(written.front_keys)
    assert parent.data.tags["mlflow.note.content"].splitlines()[0] == written.verdict
    mlflow = client.connect(store.uri)
    names = {item.path for item in mlflow.list_artifacts(parent.info.run_id, "report")}
    assert names == {f"report/{path.name}" for path in written.files}
    assert parent.info.artifact_uri.startswith(Path(links.sqlite_path(store.uri) or "").parent.as_uri())


def test_sync_tells_what_is_missing(few: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep = few()
    nobody = "http://127.0.0.1:9"  # the discard port: nothing listens
    assert sync.main([str(sweep.directory), "--tracking-uri", nobody, "--timeout-s", "0.2"]) == 1
    assert "MLflow still lacks" in capsys.readouterr().err
    assert sync.main([str(tmp_path)]) == 2
    assert sync.main([str(sweep.directory), "--timeout-s", "0"]) == 2
