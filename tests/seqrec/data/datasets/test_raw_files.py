"""Raw files: what is looked for, what is unpacked, where a block ends, and what is said of a broken download."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from seqrec.data.datasets.pipeline import prepare
from seqrec.data.datasets.protocols import Filters
from seqrec.data.datasets.raw_files import find, open_text
from seqrec.data.datasets.registry import named
from seqrec.errors import DataError

Run = Callable[..., Any]

EVENTS = "".join(f"{user} 0{item} {1307583271 + user}\n" for user in range(50) for item in range(40)).encode()


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"], ids=["unix", "dos"])
@settings(deadline=None)
@given(
    lines=st.lists(st.binary(max_size=9).map(lambda line: b"#" + line.translate(None, b"\r\n")), max_size=20),
    size=st.integers(1, 30),
    last=st.booleans(),
)
def test_blocks_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, ends: bytes, lines: list[bytes], size: int, last: bool
) -> None:
    path = tmp_path_factory.mktemp("blocks") / "x"
    content = b"#" + ends.join([b"", *lines]) + ends * last
    path.write_bytes(gzip.compress(content))
    with open_text(path) as text:
        blocks = list(text.blocks(b"\n", has_header=False, size=size))
        assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert b"".join(block.text for block in blocks) == content.replace(b"\r\n", b"\n")
    for before, block in pairwise(blocks):
        assert before.text.endswith(b"\n")
        assert block.first_line == before.first_line + before.text.count(b"\n")


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_a_header_is_no_line_of_a_block(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4")
    with open_text(path) as text:
        blocks = list(text.blocks(b"\n", has_header=True, size=size))
    assert {block.header for block in blocks} == {"a,b"}
    assert blocks[0].first_line == 2
    assert b"".join(block.text for block in blocks) == b"1,2\n3,4"


def test_a_missing_file_lists_what_was_looked_for_and_what_is_there(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refusal:
        run("behance", "appreciate.gz", b"x")
    assert str(refusal.value) == (
        f"--raw: got '{tmp_path / 'raw'}', which holds appreciate.gz; expected a folder that holds one of "
        "Behance_appreciate_1M.gz, Behance_appreciate_1M, or such a file. "
        "hint: from J. McAuley, UC San Diego: Behance community art data"
    )


def test_two_files_are_one_too_many_and_a_file_can_be_named(tmp_path: Path) -> None:
    for name in ("a.gz", "a"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"expected one raw file, not 2 \(a\.gz, a\)"):
        find(tmp_path, ["a.gz", "a"], "nobody")
    assert find(tmp_path / "a", ["a.gz", "a"], "nobody") == (tmp_path / "a", 1)
    with pytest.raises(DataError, match=r"--raw: got .*b'; expected .* hint: there is no such folder"):
        find(tmp_path / "b", ["a"], "nobody")
    with pytest.raises(DataError, match=r"--raw: got .*/a'; expected a folder that holds one of c, or such a file"):
        find(tmp_path / "a", ["c"], "nobody")


PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in to download</body></html>"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PAGE, "expected the data set's file, not a web page."),
        (gzip.compress(PAGE), "expected the data set's file, not a web page."),
        (gzip.compress(EVENTS)[:-400], "got a file that ends too early; expected it whole. hint: download it again"),
        (gzip.compress(EVENTS)[:-3], "got a file that ends too early; expected it whole."),
        (gzip.compress(EVENTS)[:-8] + bytes(8), "got CRC check failed"),
        (gzip.compress(EVENTS) + b"rubbish", "got Not a gzipped file (b'ru'); expected an undamaged archive."),
        (b"\x1f\x8b\x08\x00" + bytes(6) + b"\xff" * 99, "expected an undamaged archive. hint: download it again"),
        (EVENTS, "expected a gzip file (1f 8b ...). hint: if it is unpacked already, rename it without .gz"),
        (b"", "expected a gzip file (1f 8b ...)."),
        (gzip.compress(EVENTS + b"7 0"), "line 2001: got 2 values; expected 3 (user, item, timestamp)."),
    ],
)  # fmt: skip
def test_a_broken_download_is_told(run: Run, tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError) as refusal:
        run("behance", "Behance_appreciate_1M.gz", content)
    assert str(refusal.value).startswith(str(tmp_path / "raw" / "Behance_appreciate_1M.gz") + ": ")
    assert words in str(refusal.value)


def archive(content: bytes, name: str = "ml-20m/ratings.csv") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return packed.getvalue()


FILMS = b"userId,movieId,rating,timestamp\n" + b"".join(
    b"%d,%d,3.5,1112486027\n" % (user, random.Random(user).randrange(10**6)) for user in range(2000)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive(FILMS)[:5000], "got File is not a zip file; expected an undamaged archive. hint: download it again"),
        (archive(FILMS, "ml-20m/movies.csv"), "members: got 0; expected one ratings.csv."),
        (archive(FILMS)[:900] + bytes(40) + archive(FILMS)[940:], "expected an undamaged archive."),
        (archive(FILMS + b"1,x"), "ml-20m.zip: ml-20m/ratings.csv: line 2002: got 2 values; expected 4"),
    ],
)  # fmt: skip
def test_a_broken_archive_is_told(run: Run, content: bytes, words: str) -> None:
    with pytest.raises(DataError) as refusal:
        run("ml_20m", "ml-20m.zip", content)
    assert words in str(refusal.value)


def test_half_a_parquet_file_is_told(run: Run) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"user_id": range(9000), "track_id": range(9000), "datetime": range(9000)}), sink)
    with pytest.raises(DataError, match=r"zvuk-interactions\.parquet: cannot be read \(.*hint: is the download compl"):
        run("zvuk", "zvuk-interactions.parquet", sink.getvalue()[:9000])


@pytest.mark.parametrize(("end", "warned"), [("\n", False), ("", True), ("\n\n", False)])
def test_a_last_line_without_an_end_is_told(
    run: Run, capsys: pytest.CaptureFixture[str], end: str, warned: bool
) -> None:
    run("behance", "Behance_appreciate_1M", b"1 2 1307583271\n1 3 1307583271" + end.encode())
    assert ("the last line has no line end" in capsys.readouterr().err) == warned


def test_a_published_checksum_is_held_against_the_file(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    content = archive(FILMS)
    true, stated = hashlib.md5(content).hexdigest(), "cd245b17a1ae2cc31bb14903e1204af3"
    done = run("ml_20m", "ml-20m.zip", content).done
    assert f"got MD5 {true}; its publisher states {stated}" in capsys.readouterr().err
    told = json.loads(done.account.read_text())["provenance"]["raw"][0]
    assert (told["md5"], told["published_md5"]) == (true, stated)
    data_set = named("ml_20m")
    files = (replace(data_set.files[0], md5=true), *data_set.files[1:])
    prepare(replace(data_set, files=files), done.raw, done.file, Filters())
    assert "MD5" not in capsys.readouterr().err


def test_the_account_holds_the_checksum_of_what_was_read(run: Run) -> None:
    content = gzip.compress(EVENTS)
    assert run("behance", "Behance_appreciate_1M.gz", content).done.raw_sha256 == hashlib.sha256(content).hexdigest()
    content = archive(FILMS)
    assert run("ml_20m", "ml-20m.zip", content).done.raw_sha256 == hashlib.sha256(content).hexdigest()
