"""The work folder beside the output: a finished part for every block of the raw file, found again when interrupted.

A part's name holds the digest of what it was made from, and the folder's name the raw file's size and time and every
option that matters; so a part is used again only for the very same bytes read in the very same way.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqrec.data.datasets.cells import Laws, events
from seqrec.data.datasets.columnar import BATCH_ROWS, Columnar
from seqrec.data.datasets.dataset import RawForm
from seqrec.data.datasets.progress import Advance
from seqrec.data.datasets.protocols import Filters
from seqrec.data.datasets.raw_files import BLOCK_BYTES, open_text, sha256
from seqrec.data.datasets.rows import Rows, TextForm
from seqrec.errors import DataError, message

ADAPTERS_VERSION = 1
"""Raised when the same raw file gives other parts."""


@dataclass(frozen=True)
class Reading:
    """How a raw file is read."""

    laws: Laws
    filters: Filters
    """Those of single rows (`Filters.of_rows`)."""
    earliest: date
    latest: date
    block_bytes: int = BLOCK_BYTES
    batch_rows: int = BATCH_ROWS


@dataclass(frozen=True)
class Parts:
    """A raw file, read."""

    files: tuple[Path, ...]
    """Parquet: user, item, time, and kept (False: left out by rating or event)."""
    sha256: str
    """Of the raw file."""
    reused: int
    """Parts that an earlier, interrupted preparation finished."""
    empty: int
    """Records without any field, left out."""
    nameless: int
    """Rows without a user, left out."""
    ends_in_a_line: bool
    """False: a text whose last line has no line end."""


def key(path: Path, form: RawForm, reading: Reading) -> str:
    """16 hex digits of everything but the raw file's content that a part depends on."""
    stat = path.stat()
    told = json.dumps(
        [ADAPTERS_VERSION, str(path.resolve()), stat.st_size, stat.st_mtime_ns, repr(form), repr(reading)]
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The work folder, for one preparation at a time. Raises DataError while another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            law = "a file that no other preparation is writing"
            raise DataError(message("--out", folder.name.removeprefix(".").removesuffix(".work"), law)) from None
        try:
            yield
        finally:
            _tidy(folder)


def _tidy(folder: Path) -> None:
    """Leaves no work folder without parts in it."""
    kept = False
    for place in folder.iterdir() if folder.exists() else ():
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
        kept |= place.is_dir()
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)


def current(folder: Path, name: str) -> Path:
    """The folder of this key; those of other raw files or options are removed."""
    for other in folder.iterdir():
        if other.is_dir() and other.name != name:
            shutil.rmtree(other)
    (folder / name).mkdir(exist_ok=True)
    return folder / name


def read(path: Path, form: RawForm, reading: Reading, folder: Path, advance: Advance) -> Parts:
    """Reads a raw file into parts, except those that are there already."""
    if isinstance(form.form, Columnar):
        return _read_columnar(path, form.form, reading, folder, advance)
    return _read_text(path, form, form.form, reading, folder, advance)


def _read_text(path: Path, raw: RawForm, form: TextForm, reading: Reading, folder: Path, advance: Advance) -> Parts:
    shelf = _Shelf(folder, reading)
    with open_text(path, raw.member) as text:
        for block in text.blocks(form.separator, has_header=form.has_header, size=reading.block_bytes):
            digest = hashlib.sha256(f"{block.header}\n".encode("utf-8", "surrogateescape") + block.text).hexdigest()
            shelf.put(digest[:32], lambda block=block: form.parse(block))  # type: ignore[misc]
            advance(text.position(), f"{shelf.rows:,} events")
    return shelf.parts(text.sha256, ends_in_a_line=text.ends_in_a_line)


def _read_columnar(path: Path, form: Columnar, reading: Reading, folder: Path, advance: Advance) -> Parts:
    shelf = _Shelf(folder, reading)
    size = path.stat().st_size
    digest = sha256(path, lambda position: advance(position // 4, "hashing"))
    for begun, rows in form.batches(path, reading.batch_rows):
        count = len(rows.columns["user"])
        shelf.put(f"{digest[:16]}-{begun:012}-{count}", lambda rows=rows: rows)  # type: ignore[misc]
        done = shelf.rows / form.rows(path)
        advance(int(size * (0.25 + 0.75 * done)), f"{shelf.rows:,} events")
    return shelf.parts(digest, ends_in_a_line=True)


class _Shelf:
    """Parts in the order of the file."""

    def __init__(self, folder: Path, reading: Reading) -> None:
        self._folder, self._reading = folder, reading
        self._files: list[Path] = []
        self._reused = self._empty = self._nameless = self.rows = 0

    def put(self, digest: str, parse: Callable[[], Rows]) -> None:
        file = self._folder / f"part-{len(self._files):06}-{digest}.parquet"
        if file.is_file():
            self._reused += 1
        else:
            _write(file, self._table(parse()))
        with pq.ParquetFile(file) as part:
            left_out = part.schema_arrow.metadata or {}
            self.rows += part.metadata.num_rows
        self._empty += int(left_out[b"empty"])
        self._nameless += int(left_out[b"nameless"])
        self._files.append(file)

    def _table(self, rows: Rows) -> pa.Table:
        found = events(rows, self._reading.laws, self._reading.earliest, self._reading.latest)
        table, filters = found.table, self._reading.filters
        kept = pa.chunked_array([pa.repeat(True, table.num_rows)])
        if filters.rating_above is not None:
            kept = pc.greater(table["value"], filters.rating_above)
        if filters.event is not None:
            kept = pc.equal(table["value"], filters.event)
        columns = {name: table[name] for name in ("user", "item", "time")} | {"kept": kept}
        told = {"empty": str(rows.empty), "nameless": str(found.nameless)}
        return pa.table(columns).replace_schema_metadata(told)

    def parts(self, sha256: str, *, ends_in_a_line: bool) -> Parts:
        return Parts(tuple(self._files), sha256, self._reused, self._empty, self._nameless, ends_in_a_line)


def _write(file: Path, table: pa.Table) -> None:
    """All or nothing, a loss of power included: a part that is there is whole."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as sink:
        pq.write_table(table, sink, compression="zstd")
        sink.flush()
        os.fsync(sink.fileno())
    os.replace(partial, file)
