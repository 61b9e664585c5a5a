"""A launch whose results go to a store, without Ray: what it says, how it exits, who else may start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sweeps import cluster, execute, mirror, run
from sweeps.errors import LedgerBusy
from sweeps.mirror import Mirror
from tests.sweeps.test_execute import CELLS, PLAN, FakeRay, options, ray as ray, space

ADDRESS = "memory://sweeps/here"


def test_a_launch_leaves_ledger_and_report_in_the_store(
    tmp_path: Path, ray: FakeRay, system: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute.run(space(), PLAN, options(tmp_path, mirror=ADDRESS)) == 0
    assert f"in the store: {ADDRESS}/s" in capsys.readouterr().err
    [piece] = system.find("/sweeps/here/s/ledger")
    assert system.cat_file(piece) == (tmp_path / "s" / "ledger.jsonl").read_bytes()
    assert system.exists("/sweeps/here/s/report/cells.csv")
    # Another machine has nothing left to do.
    assert execute.run(space(), PLAN, options(tmp_path / "other", mirror=ADDRESS)) == 0
    assert f"all {len(CELLS)} cells are done" in capsys.readouterr().out
    assert len(ray.rounds) == 1


def test_a_launch_is_refused_while_another_one_runs(tmp_path: Path, ray: FakeRay, system: Any) -> None:
    other = Mirror(ADDRESS, "s", tmp_path / "other" / "s")
    with pytest.raises(LedgerBusy):
        execute.run(space(), PLAN, options(tmp_path, mirror=ADDRESS))
    assert ray.rounds == []
    assert not (tmp_path / "s").exists()
    other.close()


def test_a_store_that_lacks_the_end_is_a_failure(
    tmp_path: Path, ray: FakeRay, system: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def down(*args: Any, **named: Any) -> None:
        raise OSError

    monkeypatch.setattr(mirror, "CLOSE_WAIT_S", 0.0)
    ray.before_fit = lambda launch: monkeypatch.setattr(type(system), "pipe_file", down)
    assert execute.run(space(), PLAN, options(tmp_path, mirror=ADDRESS)) == 1
    assert f"error: {ADDRESS}/s: does not answer (OSError) and lacks the end of" in capsys.readouterr().err


def test_who_was_taken_over_ends_with_an_error(
    tmp_path: Path, ray: FakeRay, system: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.before_fit = lambda launch: launch.halt(f"{ADDRESS}/s: {mirror.TAKEN}")
    assert execute.run(space(), PLAN, options(tmp_path, mirror=ADDRESS)) == 1
    assert "another driver has taken the sweep over" in capsys.readouterr().err


def test_nodes_that_do_not_share_the_folder_are_named(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "blind_nodes", lambda folder: ["10.0.0.9"])
    assert execute.run(space(), PLAN, options(tmp_path, address="auto")) == 0
    told = (
        f"note: {tmp_path / 's'} is not the same folder on 10.0.0.9. A cell that moves there from another node starts"
    )
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("storage", "law"),
    [
        ("s3://bucket/x?sig=c4n4ry", r"--storage: got 's3://bucket/x\?\*\*\*'; expected an address without \? and #"),
        ("gopher://bucket/x", "--storage: got 'gopher://bucket/x'; expected a path, or an address that fsspec knows"),
    ],
)
def test_a_storage_that_is_none(
    storage: str,
    law: str,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run.main([str(tiny), "--storage", storage, "--no-tracking"]) == 2
    assert re.search(f"^error: {law}", capsys.readouterr().err)
