"""A ledger in a store: mirrored while it grows, brought back, one writer at a time. The store is fsspec's in memory,
which has S3's put-if-absent; tests/cluster/test_store_on_s3.py does the same on a server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sweeps import lease, ledger, mirror
from sweeps.errors import LedgerBusy, LedgerError
from sweeps.ledger import FILE_NAME, Ledger
from sweeps.mirror import Mirror
from tests.cluster.conftest import wait_for

ADDRESS = "memory://sweeps/here"
ROOT = "/sweeps/here/s"


@pytest.fixture
def on(tmp_path: Path, system: Any) -> Callable[[str], Mirror]:
    """A mirror of the sweep `s`, kept on the disk of the machine of this name; closed by the test."""
    return lambda machine: Mirror(ADDRESS, "s", tmp_path / machine / "s", poll_s=0.02)


def write(one: Mirror, events: int) -> None:
    with Ledger(one._directory) as book:
        if not book.state.sweep_id:
            book.append("sweep", sweep_id="a" * 32, name="s")
        for _ in range(events):
            book.append("plan", launch=book.state.launches + 1, cell_keys=["k" * 16] * 10)


def there(system: Any) -> bytes:
    """The ledger as a reader of the store would put it together, by the names alone."""
    pieces = sorted(path.rpartition("/")[2] for path in system.find(f"{ROOT}/ledger"))
    content = b""
    for _, name in sorted((name.split(".")[1], name) for name in pieces):
        content = content[: int(name.split(".")[0])] + system.cat_file(f"{ROOT}/ledger/{name}")
    return content


def dead(system: Any, number: int) -> None:
    """Make the holder of a lease one that is gone: elsewhere, and silent for too long."""
    path = f"{ROOT}/lease/{number:06d}"
    system.pipe_file(path, json.dumps({"host": "elsewhere", "pid": 7, "place": "another boot"}).encode())
    system.store[path].modified -= timedelta(seconds=lease.EXPIRY_S + 1)


def test_it_follows_the_ledger_and_another_machine_goes_on(
    on: Callable[[str], Mirror], system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PIECE_BYTES", 700)  # three events a piece
    one = on("one")
    for _ in range(5):
        write(one, 4)
        wait_for(lambda: there(system) == one._ledger.read_bytes(), "what was appended, in the store")
    assert one.close() == ""
    assert len(system.find(f"{ROOT}/ledger")) > 4
    assert all(len(system.cat_file(path)) < 1400 for path in system.find(f"{ROOT}/ledger"))
    assert system.find(f"{ROOT}/lease") == []

    two = on("two")
    assert two._ledger.read_bytes() == one._ledger.read_bytes()
    write(two, 3)
    assert two.close() == ""
    assert there(system) == two._ledger.read_bytes()
    assert [event["sequence"] for event, _ in ledger.read(two._ledger)] == list(range(24))


def test_the_longer_one_wins_on_either_side(on: Callable[[str], Mirror], system: Any) -> None:
    one = on("one")
    write(one, 3)
    one.close()
    write(one, 2)  # a driver that died before its mirror had the end
    again = on("one")
    again.close()
    assert there(system) == one._ledger.read_bytes()
    two = on("two")
    write(two, 2)
    two.close()
    back = on("one")
    assert back._ledger.read_bytes() == two._ledger.read_bytes()
    back.close()


def test_a_torn_line_is_no_contradiction(on: Callable[[str], Mirror], system: Any) -> None:
    """What a crash tore never happened, whatever another machine went on with."""
    one = on("one")
    write(one, 3)
    one.close()
    with one._ledger.open("ab") as file:
        file.write(b'{"type":"torn')
    two = on("two")
    write(two, 1)
    two.close()
    again = on("one")
    assert again._ledger.read_bytes() == two._ledger.read_bytes()
    with again._ledger.open("ab") as file:
        file.write(b'{"type":"torn')
    write(again, 1)
    again.close()
    assert there(system) == again._ledger.read_bytes()


def test_a_contradiction_is_named_and_changes_nothing(on: Callable[[str], Mirror], system: Any) -> None:
    one, text = on("one"), ""
    write(one, 3)
    one.close()
    text = one._ledger.read_text(encoding="utf-8").replace('"launch":2', '"launch":9')
    one._ledger.write_text(text, encoding="utf-8")
    kept = there(system)
    with pytest.raises(LedgerError, match=r"one/s/ledger.jsonl and memory://sweeps/here/s: contradict .* line 3 on"):
        on("one")
    assert one._ledger.read_text(encoding="utf-8") == text
    assert there(system) == kept
    assert system.find(f"{ROOT}/lease") == [], "the lease is free again"


def test_a_missing_piece_is_named(on: Callable[[str], Mirror], system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "PIECE_BYTES", 700)
    one = on("one")
    write(one, 12)
    one.close()
    system.rm_file(system.find(f"{ROOT}/ledger")[1])
    with pytest.raises(LedgerError, match=r"/ledger: got nothing at byte \d+; expected a piece there"):
        on("two")


def test_two_drivers_cannot_both_write(on: Callable[[str], Mirror], system: Any) -> None:
    one = on("one")
    with pytest.raises(
        LedgerBusy, match=rf"here/s: is in use by another driver \(pid {os.getpid()} on .*heard of 0 s ago"
    ):
        on("two")
    one.close()
    on("two").close()


def test_a_dead_holder_is_replaced_when_it_was_silent_for_long(on: Callable[[str], Mirror], system: Any) -> None:
    one = on("one")
    dead(system, 1)
    system.store[f"{ROOT}/lease/000001"].modified += timedelta(seconds=2)
    with pytest.raises(LedgerBusy, match="pid 7 on elsewhere, heard of 299 s ago"):
        on("two")
    dead(system, 1)
    two = on("two")
    assert [path.rpartition("/")[2] for path in system.find(f"{ROOT}/lease")] == ["000002"]
    assert "taken the sweep over" in one.close()
    assert two.close() == ""


def test_who_waits_gets_it_when_the_holder_is_done_with_all_that_it_wrote(
    on: Callable[[str], Mirror], system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = on("one")
    monkeypatch.setattr(mirror, "WAIT_STEP_S", 0.01)

    def finish(seconds: float) -> None:
        write(one, 2)
        assert one.close() == ""

    monkeypatch.setattr(mirror.time, "sleep", finish)
    two = Mirror(ADDRESS, "s", tmp_path / "two" / "s", wait_s=60.0)
    assert two._ledger.read_bytes() == one._ledger.read_bytes() != b""
    assert two._lease.number == 2
    two.close()


def test_a_holder_that_died_here_is_replaced_at_once(on: Callable[[str], Mirror], system: Any) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    card = {**json.loads(lease._card()), "pid": gone.pid}
    system.pipe_file(f"{ROOT}/lease/000001", json.dumps(card).encode())
    on("two").close()


def test_who_was_taken_over_stops_and_spoils_nothing(
    on: Callable[[str], Mirror], system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = on("one")
    write(one, 3)
    wait_for(lambda: there(system) == one._ledger.read_bytes(), "the first driver's events")
    dead(system, 1)
    two = on("two")
    write(two, 2)
    # The first one wakes, and writes before it looks at its lease.
    write(one, 5)
    wait_for(lambda: one._sent == one._ledger.stat().st_size, "the late piece")
    assert two.close() == ""
    three = on("three")
    assert three._ledger.read_bytes() == two._ledger.read_bytes()
    three.close()

    halted: list[str] = []
    one.attach(halted.append)
    monkeypatch.setattr(lease, "RENEW_S", 0.0)
    on("four")
    wait_for(lambda: halted, "the end of the first driver's launch")
    assert "another driver has taken the sweep over" in halted[0]
    assert "taken the sweep over" in one.close()


def test_of_two_takers_one_gets_it(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see a free folder; the second one's put finds the first one's."""
    monkeypatch.setattr(lease, "_numbers", lambda system, folder: [])
    lease.take(system, ROOT, "told")
    with pytest.raises(LedgerBusy, match="another driver has just taken it"):
        lease.take(system, ROOT, "told")


def test_a_store_that_is_down_costs_nothing_but_time(
    on: Callable[[str], Mirror], system: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = on("one")
    put = type(system).pipe_file

    def down(*args: Any, **named: Any) -> None:
        raise OSError("unreachable: c4n4ry")

    monkeypatch.setattr(type(system), "pipe_file", down)
    write(one, 3)
    wait_for(lambda: "does not answer (OSError); the sweep goes on" in caplog.text, "the line that says so")
    time.sleep(0.2)
    assert caplog.text.count("does not answer") == 1
    monkeypatch.setattr(type(system), "pipe_file", put)
    wait_for(lambda: there(system) == one._ledger.read_bytes(), "the events that waited")
    assert "answers again" in caplog.text
    assert "c4n4ry" not in caplog.text
    assert one.close() == ""


def test_a_store_that_stays_down_is_told_at_the_end(
    on: Callable[[str], Mirror], system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = on("one")
    monkeypatch.setattr(mirror, "CLOSE_WAIT_S", 0.0)

    def down(*args: Any, **named: Any) -> None:
        raise OSError

    monkeypatch.setattr(type(system), "pipe_file", down)
    write(one, 1)
    assert one.close().startswith("memory://sweeps/here/s: does not answer (OSError) and lacks the end of")


def test_the_report_goes_along_and_ended_cells_leave_no_checkpoint(on: Callable[[str], Mirror], system: Any) -> None:
    one = on("one")
    write(one, 1)
    for cell, name in (("ended", "000003.pt"), ("paused", "000003.pt")):
        system.pipe_file(f"{ROOT}/checkpoints/{cell}/{name}", b"weights")
    one.forget("ended")
    wait_for(lambda: not system.find(f"{ROOT}/checkpoints/ended"), "the checkpoint's end")
    system.pipe_file(f"{ROOT}/checkpoints/ended/000004.pt", b"a trial that stops late")
    (one._directory / "report").mkdir()
    (one._directory / "report" / "pareto.html").write_text("<html>", encoding="utf-8")
    assert one.close() == ""
    assert system.cat_file(f"{ROOT}/report/pareto.html") == b"<html>"
    assert system.find(f"{ROOT}/checkpoints") == [f"{ROOT}/checkpoints/paused/000003.pt"]
    assert one._ledger.name == FILE_NAME
