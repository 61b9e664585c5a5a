from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sweeps.errors import LedgerBusy, LedgerError
from sweeps.ledger import FILE_NAME, LOCK_NAME, Event, Ledger, fold, read
from sweeps.outcomes import Outcome

NDCG = "valid/ndcg_at_10"


def add_cell(ledger: Ledger, key: str = "a") -> None:
    ledger.append("cell", cell_key=key, configuration_key="c", label="ce b1", parameters={}, run={}, predicted_bytes=1)


def add_epoch(ledger: Ledger, epoch: int, key: str = "a", **metrics: float) -> Event | None:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return ledger.append("epoch", cell_key=key, attempt=1, epoch=epoch, metrics=named)


def add_end(ledger: Ledger, outcome: str, key: str = "a") -> Event | None:
    return ledger.append("end", cell_key=key, attempt=1, outcome=outcome, reason="", epochs=1, metrics={})


def events_of(directory: Path) -> list[Event]:
    return [event for event, _ in read(directory / FILE_NAME)]


def test_a_second_writer_is_refused_by_pid_and_host(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(LedgerBusy, match=f"pid {os.getpid()} on "):
        Ledger(tmp_path)
    Ledger(tmp_path).close()


def test_the_lock_of_a_killed_writer_is_free_at_once(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from sweeps.ledger import Ledger
        ledger = Ledger(Path({str(tmp_path)!r}))
        ledger.append("sweep", sweep_id="s", name="n")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert result.returncode == -signal.SIGKILL
    with Ledger(tmp_path) as ledger:
        assert ledger.state.sweep_id == "s"


def test_a_replay_is_written_once(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        add_cell(ledger)
        assert add_epoch(ledger, 1) is not None
        assert add_epoch(ledger, 2) is not None
        assert add_epoch(ledger, 1) is None
        assert add_end(ledger, "interrupted") is not None
        assert add_end(ledger, "done") is not None
        assert add_end(ledger, "error") is None
        assert add_epoch(ledger, 3) is None, "an orphan's report after the end"
    kinds = [event["type"] for event in events_of(tmp_path)]
    assert kinds == ["cell", "epoch", "epoch", "end", "end"]


def test_what_is_a_replay_is_known_after_reopening(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        add_epoch(ledger, 1)
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        assert add_epoch(ledger, 1) is None
        assert add_epoch(ledger, 2) is not None
    assert [event["sequence"] for event in events_of(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("torn", [b'{"type":"epo', b"\x00" * 17, b'{"type":"end","sequence":2}'])
def test_a_torn_last_line_is_ignored_then_cut_off(tmp_path: Path, torn: bytes) -> None:
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(events_of(tmp_path)) == 1
    with Ledger(tmp_path) as ledger:
        assert path.read_bytes() == whole
        add_epoch(ledger, 1)
    assert [event["sequence"] for event in events_of(tmp_path)] == [0, 1]


@pytest.mark.parametrize("damage", ["{oops", "[]", '{"type":"cell"}', ""])
def test_damage_in_the_middle_names_the_line(tmp_path: Path, damage: str) -> None:
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        add_epoch(ledger, 1)
        add_epoch(ledger, 2)
    path = tmp_path / FILE_NAME
    lines = path.read_text().splitlines()
    lines[1] = damage
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match="line 2"):
        events_of(tmp_path)
    with pytest.raises(LedgerError, match="line 2"):
        Ledger(tmp_path)
    lines.pop(1)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match="line 2: got sequence 2; expected 1"):
        Ledger(tmp_path)


def test_a_reader_goes_on_from_its_offset(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    assert list(read(path)) == []
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        [(first, offset)] = read(path)
        add_epoch(ledger, 1)
        [(second, end)] = read(path, offset)
        assert list(read(path, end)) == []
    assert (first["type"], second["type"]) == ("cell", "epoch")
    assert end == path.stat().st_size


def test_a_full_disk_leaves_whole_events_and_the_next_launch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    add_cell(ledger)
    real, room = os.write, 20

    def short_write(file: int, data: Any) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(file, bytes(data)[:room])
        room -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_write)
        with pytest.raises(LedgerError, match=r"No space left on device.*whole up to event 0"):
            add_epoch(ledger, 1)
    with pytest.raises(LedgerError):
        add_epoch(ledger, 1)
    ledger.close()
    assert [event["type"] for event in events_of(tmp_path)] == ["cell"]
    assert (tmp_path / FILE_NAME).read_bytes().endswith(b"\n")
    with Ledger(tmp_path) as again:
        assert add_epoch(again, 1) is not None


def test_a_failing_fsync_is_a_failing_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(LedgerError, match="Input/output error"):
                ledger.append(
                    "end", sync=True, cell_key="a", attempt=1, outcome="done", reason="", epochs=1, metrics={}
                )
        assert ledger.state.cells["a"].outcome is None


def test_ends_are_on_disk_at_once_and_epochs_with_the_next_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    now = 1000.0
    monkeypatch.setattr("sweeps.ledger.time.monotonic", lambda: now)
    monkeypatch.setattr(os, "fsync", synced.append)
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        assert len(synced) == 1
        add_epoch(ledger, 1)
        assert len(synced) == 1
        ledger.append("end", sync=True, cell_key="a", attempt=1, outcome="done", reason="", epochs=1, metrics={})
        assert len(synced) == 2
        add_cell(ledger, "b")
        now += 0.06
        ledger.flush()
        assert len(synced) == 3
        ledger.flush()
        assert len(synced) == 3


def test_numbers_that_json_does_not_know_are_left_out(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        event = add_epoch(ledger, 1, train__loss=float("nan"), valid__ndcg_at_10=0.5)
    assert event is not None
    assert event["metrics"] == {NDCG: 0.5}
    for line in (tmp_path / FILE_NAME).read_text().splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} in the ledger"))


def test_the_state_of_a_cell(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        ledger.append("start", cell_key="a", attempt=1, node="n", pid=1, from_epoch=0)
        for epoch, value, seconds, peak in ((1, 0.2, 1.0, 3.0), (2, 0.4, 9.0, 2.0), (3, 0.3, 2.0, 2.0)):
            add_epoch(
                ledger,
                epoch,
                valid__ndcg_at_10=value,
                time__epoch_s=seconds,
                time__elapsed_s=10.0 * epoch,
                memory__peak_gib=peak,
            )
        assert ledger.state.cells["a"].running
        add_end(ledger, "stopped")
        state = ledger.state
    assert state == fold(events_of(tmp_path))
    cell = state.cells["a"]
    assert (cell.outcome, cell.running, cell.attempt, cell.epochs) == (Outcome.STOPPED, False, 1, 3)
    assert cell.summary() == {
        "best/epoch": 2.0,
        "best/ndcg_at_10": 0.4,
        "best/elapsed_s": 20.0,
        "time/epoch_s": 2.0,
        "time/elapsed_s": 30.0,
        "memory/peak_gib": 3.0,
    }


def test_a_cell_without_epochs_has_an_empty_summary(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        add_cell(ledger)
        assert ledger.state.cells["a"].summary() == {}


def test_opening_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(LedgerError, match=LOCK_NAME):
        Ledger(tmp_path)


def test_a_second_timing_is_of_a_done_cell_and_stands_once(tmp_path: Path) -> None:
    def timing(ledger: Ledger, key: str) -> Event | None:
        return ledger.append("timing", cell_key=key, epochs=3, metrics={"time/epoch_s": 1.0}, node="n", gpu="")

    with Ledger(tmp_path) as ledger:
        assert timing(ledger, "unknown") is None
        add_cell(ledger)
        assert timing(ledger, "a") is None, "it has no end"
        add_end(ledger, "done")
        assert timing(ledger, "a") is not None
        assert timing(ledger, "a") is None
        add_cell(ledger, "b")
        add_end(ledger, "oom", "b")
        assert timing(ledger, "b") is None
        assert ledger.state.cells["a"].outcome is Outcome.DONE
    with Ledger(tmp_path) as ledger:
        assert timing(ledger, "a") is None, "known after reopening"
