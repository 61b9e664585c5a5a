"""An interrupted preparation goes on from its finished parts, and ends with what an uninterrupted one writes."""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from seqrec.data.datasets import parts
from seqrec.data.datasets.pipeline import Limits, Prepared, prepare
from seqrec.data.datasets.protocols import Filters
from seqrec.data.datasets.registry import named
from seqrec.errors import DataError

SMALL = Limits(block_bytes=2_000, bucket_rows=300)
EVENTS = "".join(
    f"{user * 7 % 40} 0{item * user % 30} {1307583271 + item}\n" for user in range(40) for item in range(25)
)

KILLED = """
import os, signal, sys
from pathlib import Path
from seqrec.data.datasets import parts
from seqrec.data.datasets.pipeline import Limits, prepare
from seqrec.data.datasets.protocols import Filters
from seqrec.data.datasets.registry import named

write, written = parts._write, []

def writes_three(file, table):
    if len(written) == 3:
        file.with_suffix(".partial").write_bytes(b"half a par")
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(file)
    write(file, table)

parts._write = writes_three
raw, out = map(Path, sys.argv[1:])
prepare(named("behance"), raw, out, Filters(), limits=Limits(block_bytes=2_000, bucket_rows=300))
"""


def raw_file(folder: Path, content: str = EVENTS) -> Path:
    raw = folder / "Behance_appreciate_1M.gz"
    raw.write_bytes(gzip.compress(content.encode(), mtime=0))
    os.utime(raw, (1_700_000_000, 1_700_000_000))
    return raw


def go(raw: Path, out: Path, filters: Filters | None = None, limits: Limits = SMALL) -> Prepared:
    return prepare(named("behance"), raw, out, filters or Filters(), limits=limits)


def killed(raw: Path, out: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(raw), str(out)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()


def test_what_a_kill_left_is_used_and_the_result_is_the_same(tmp_path: Path) -> None:
    raw, out = raw_file(tmp_path), tmp_path / "out.parquet"
    whole = go(raw, tmp_path / "whole.parquet")
    assert whole.reused_parts == 0
    killed(raw, out)
    resumed = go(raw, out)
    assert resumed.reused_parts == 3
    assert resumed.digest == whole.digest
    assert out.read_bytes() == whole.file.read_bytes()
    assert (resumed.raw_sha256, resumed.sizes) == (whole.raw_sha256, whole.sizes)
    assert not list(tmp_path.glob(".out*")), "the work folder is gone"


def test_another_content_of_the_same_size_and_time_is_read_anew(tmp_path: Path) -> None:
    raw, out = tmp_path / "Behance_appreciate_1M", tmp_path / "out.parquet"
    raw.write_text(EVENTS)
    os.utime(raw, (1_700_000_000, 1_700_000_000))
    killed(raw, out)
    raw.write_text(EVENTS.replace("1307583271", "1307583272", 1))
    os.utime(raw, (1_700_000_000, 1_700_000_000))
    resumed = go(raw, out)
    assert resumed.reused_parts == 2, "the first block differs, the two after it are the same"
    assert resumed.digest == go(raw, tmp_path / "whole.parquet").digest


@pytest.mark.parametrize(
    "change",
    [
        {"limits": Limits(block_bytes=3_000, bucket_rows=300)},
        {"touch": True},
    ],
    ids=["blocks", "time"],
)
def test_other_options_or_a_newer_file_begin_again(tmp_path: Path, change: dict[str, object]) -> None:
    raw, out = raw_file(tmp_path), tmp_path / "out.parquet"
    killed(raw, out)
    if change.pop("touch", False):
        os.utime(raw, (1_700_000_001, 1_700_000_001))
    assert go(raw, out, **change).reused_parts == 0
    assert not list(tmp_path.glob(".out*"))


def test_parts_serve_other_filters_of_users_and_items(tmp_path: Path) -> None:
    raw, out, filters = raw_file(tmp_path), tmp_path / "out.parquet", Filters(min_item_users=30)
    killed(raw, out)
    resumed = go(raw, out, filters)
    assert resumed.reused_parts == 3
    assert resumed.digest == go(raw, tmp_path / "whole.parquet", filters).digest
    assert resumed.sizes["after filter"] != resumed.sizes["read"]


def test_a_part_depends_on_every_option_of_reading(tmp_path: Path) -> None:
    raw, data_set = raw_file(tmp_path), named("behance")
    base = {"laws": data_set.laws, "filters": Filters(), "earliest": date(1990, 1, 1), "latest": date(2040, 1, 1)}
    readings = [parts.Reading(**base)]
    for other in (
        {"laws": named("yelp").laws},
        {"filters": Filters(rating_above=3)},
        {"earliest": date(1991, 1, 1)},
        {"latest": date(2039, 1, 1)},
        {"block_bytes": 5},
        {"batch_rows": 5},
    ):
        readings.append(parts.Reading(**(base | other)))
    keys = {parts.key(raw, data_set.files[0], reading) for reading in readings}
    assert len(keys) == len(readings)


def test_a_full_disk_is_not_the_raw_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = raw_file(tmp_path), tmp_path / "out.parquet"
    write = parts._write

    def full(file: Path, table: object) -> None:
        if file.name.startswith("part-000002"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        write(file, table)

    monkeypatch.setattr(parts, "_write", full)
    with pytest.raises(DataError, match=r"part-000002-.*: cannot be written \(No space left on device\)"):
        go(raw, out)
    monkeypatch.undo()
    assert go(raw, out).reused_parts == 2


def test_two_preparations_of_one_file_are_refused(tmp_path: Path) -> None:
    raw, out = raw_file(tmp_path), tmp_path / "out.parquet"
    (tmp_path / ".out.parquet.work").mkdir()
    with (tmp_path / ".out.parquet.work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="expected a file that no other preparation is writing"):
            go(raw, out)
    assert go(raw, out).file == out


def test_a_mistake_in_the_file_keeps_the_old_output(tmp_path: Path) -> None:
    raw, out = raw_file(tmp_path), tmp_path / "out.parquet"
    before = go(raw, out).file.read_bytes()
    raw_file(tmp_path, EVENTS + "1 2\n")
    with pytest.raises(DataError, match="line 1001: got 2 values"):
        go(raw, out)
    assert out.read_bytes() == before
    raw_file(tmp_path, EVENTS + "1 2 1307583271\n")
    assert go(raw, out).reused_parts == 0, "another file, by its size"
