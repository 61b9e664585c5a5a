"""Addresses of stores: absolute, checked at once, without passwords."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrec.errors import UserError
from sweeps.tracking import Tracker, links

Make = Callable[..., Any]


def test_the_default_store_is_absolute(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = made()
    sweep.open([])
    monkeypatch.chdir(sweep.directory.parent.parent)
    tracker = Tracker(Path("runs") / sweep.name / "ledger.jsonl")
    assert tracker.uri == f"sqlite:///{sweep.directory.parent.resolve()}/mlflow.db"
    assert Tracker(sweep.ledger, "sqlite:///some.db").uri == f"sqlite:///{Path.cwd()}/some.db"
    assert links.artifact_root("sqlite:////a/b/mlflow.db", None) == "file:///a/b/mlartifacts"
    assert links.artifact_root("http://host:5000", None) is None
    assert links.artifact_root("http://host:5000", "s3://bucket/x") == "s3://bucket/x"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/x", "ftp://host", "sqlite://", "sqlite:///"])
def test_an_address_that_cannot_work_is_refused_at_once(made: Make, uri: str) -> None:
    with pytest.raises(UserError, match="tracking_uri: got"):
        Tracker(made().ledger, uri)


def test_a_password_is_never_shown(made: Make) -> None:
    uri = "postgresql+psycopg://user:s3cret@host:5432/mlflow"
    tracker = Tracker(made().ledger, uri)
    assert "s3cret" not in str(tracker.links())
    assert links.safe_uri(uri) == "postgresql+psycopg://user:***@host:5432/mlflow"
    assert links.safe_uri("http://user:s3cret@[broken") == "http://..."
    assert links.safe_uri("sqlite:////a/b.db") == "sqlite:////a/b.db"
