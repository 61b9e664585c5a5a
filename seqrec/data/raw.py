"""Raw interaction files: CSV, TSV or parquet with any column names and any ids. Errors name file and line."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from seqrec.data.tables import IntArray
from seqrec.errors import DataError, message

KNOWN = {
    "user": ("userid", "user", "uid", "reviewerid", "visitorid", "customerid"),
    "item": ("itemid", "item", "iid", "asin", "movieid", "trackid", "businessid", "locationid", "productid"),
    "time": ("timestamp", "time", "datetime", "date", "unixreviewtime", "checkintime"),
    "order": ("order", "position"),
}
"""Column names that need no option: lower case, without _ - and blanks, and without a type as in `user_id:token`."""

_INTEGER = r"^[+-]?\d{1,18}(\.0*)?$"
_PLAIN_INTEGER = r"^(0|[1-9]\d{0,17})$"
_DATE = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?"
_LOCAL, _ZONED = _DATE + "$", _DATE + r"(Z|[+-]\d{2}(:?\d{2})?)$"


@dataclass(frozen=True, eq=False)
class Raw:
    """A file's interactions in the file's row order."""

    source: Source
    user: IntArray
    """(n,) index into user_ids"""
    user_ids: pa.Array
    """The file's ids, ascending: integers where all are written as such, else text."""
    item: IntArray
    item_ids: pa.Array
    time: IntArray
    """(n,) timestamp (dates: seconds since 1970, or microseconds if some have a fraction), or order within the user."""
    has_timestamps: bool


def read(path: Path, columns: dict[str, str | None]) -> Raw:
    """A raw file. columns: the names of user, item, and time or order; None: recognised by `KNOWN`.

    Raises DataError that names the file, and the line (text) or row (parquet, from 1) of the first value that is
    missing or no time.
    """
    source = Source.open(path)
    names = _choose(source, columns)
    table = source.table(list(names.values()))
    if table.num_rows == 0:
        raise DataError(message(f"{path}: rows", 0, "at least one interaction"))
    user, user_ids = _encode(source, table[names["user"]], names["user"])
    item, item_ids = _encode(source, table[names["item"]], names["item"])
    kind = "time" if "time" in names else "order"
    time = _times(source, table[names[kind]], names[kind], dates=kind == "time")
    return Raw(source, user, user_ids, item, item_ids, time, has_timestamps=kind == "time")


@dataclass(frozen=True)
class Source:
    """A raw file, and how to find a place in it again."""

    path: Path
    columns: tuple[str, ...]
    delimiter: str | None
    """None: parquet."""

    @classmethod
    def open(cls, path: Path) -> Source:
        try:
            with path.open("rb") as file:
                is_parquet = file.read(4) == b"PAR1"
            if is_parquet:
                return cls(path, tuple(pq.read_schema(path).names), None)
            with _text(path) as text:
                header = text.readline().removeprefix("\ufeff")
        except (OSError, EOFError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".")
            raise DataError(f"{path}: cannot be read ({reason}).") from None
        delimiter = max("\t,;|", key=header.count)
        return cls(path, tuple(next(csv.reader([header], delimiter=delimiter), [])), delimiter)

    def table(self, names: list[str]) -> pa.Table:
        """The named columns; those of a text file as text."""
        try:
            if self.delimiter is None:
                return pq.ParquetFile(self.path).read(columns=names)
            return pyarrow.csv.read_csv(
                self.path,
                parse_options=pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), include_columns=names
                ),
            )
        except (pa.ArrowException, OSError) as error:
            if self.delimiter is not None:
                self._find_broken_line()
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(f"{self.path}: cannot be read ({reason}).") from None

    def error(self, row: int, column: str, got: object, law: str) -> DataError:
        """A DataError about a value; row: 0-based."""
        return DataError(message(f"{self.path}: {self._place(row)}, {column}", got, law))

    def _place(self, row: int) -> str:
        if self.delimiter is None:
            return f"row {row + 1}"
        for number, (line, _) in enumerate(self._records()):
            if number == row + 1:
                return f"line {line}"
        raise AssertionError("the file has become shorter")

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """(line where it ends, values) of the header and of every record; slow, for error messages alone."""
        assert self.delimiter is not None
        with _text(self.path) as file:
            reader = csv.reader(file, delimiter=self.delimiter)
            for record in reader:
                if record:
                    yield reader.line_num, record

    def _find_broken_line(self) -> None:
        for line, record in self._records():
            where = f"{self.path}: line {line}"
            if any("\udc80" <= letter <= "\udcff" for value in record for letter in value):
                raise DataError(f"{where}: got bytes that are not UTF-8; expected UTF-8 text.")
            if len(record) != len(self.columns):
                raise DataError(f"{where}: got {len(record)} values; expected {len(self.columns)}, as in the header.")


def _text(path: Path) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", errors="surrogateescape", newline="")


def _choose(source: Source, columns: dict[str, str | None]) -> dict[str, str]:
    """The column of every role: as told, else the only one with a known name."""
    told = {role: name for role, name in columns.items() if name is not None}
    chosen: dict[str, str] = {}
    listing = ", ".join(source.columns) or "nothing"
    for role, name in told.items():
        if source.columns.count(name) != 1:
            raise DataError(message(f"--{role}-column", name, f"a column of {source.path}, which has {listing}"))
        chosen[role] = name
    for role in ("user", "item", "time", "order"):
        if role in told or (role in ("time", "order") and ("time" in chosen or "order" in told)):
            continue
        found = [name for name in source.columns if _plain(name) in KNOWN[role]]
        if len(found) > 1:
            law = f"one {role} column"
            raise DataError(message(f"{source.path}: columns", ", ".join(found), law, f"choose with --{role}-column"))
        if found:
            chosen[role] = found[0]
        elif role != "time":
            wanted = "time or order" if role == "order" else role
            options = " or ".join(f"--{word}-column" for word in wanted.split(" or "))
            raise DataError(
                message(f"{source.path}: columns", listing, f"a known name for the {wanted}", f"name it with {options}")
            )
    return chosen


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.partition(":")[0].lower())


def _encode(source: Source, column: pa.ChunkedArray, name: str) -> tuple[IntArray, pa.Array]:
    """Ids as indices into their ascending list: integers by value, text by code points."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = _whole(source, column, name)
    if not pa.types.is_integer(column.type):
        column = _trimmed(source, column, name)
        if pc.all(pc.match_substring_regex(column, _PLAIN_INTEGER)).as_py():
            column = column.cast(pa.int64())
    _refuse_missing(source, column, name)
    encoded = column.combine_chunks().dictionary_encode()
    order = np.from_dlpack(pc.sort_indices(encoded.dictionary))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[np.from_dlpack(encoded.indices)], encoded.dictionary.take(pa.array(order))


def _times(source: Source, column: pa.ChunkedArray, name: str, *, dates: bool) -> IntArray:
    law = "a whole number" + (" or an ISO date (all with a zone, or none)" if dates else "")
    if pa.types.is_floating(column.type):
        column = _whole(source, column, name)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if not (pa.types.is_integer(column.type) or (dates and pa.types.is_timestamp(column.type))):
        column = _trimmed(source, column, name)
        kinds = {_INTEGER: pa.int64()}
        if dates:
            kinds |= {_LOCAL: pa.timestamp("us"), _ZONED: pa.timestamp("us", "UTC")}
        first = column[0].as_py()
        pattern = next((kind for kind in kinds if re.match(kind, first)), _INTEGER)
        fits = pc.match_substring_regex(column, pattern)
        if not pc.all(fits).as_py():
            row = fits.index(False).as_py()
            raise source.error(row, name, column[row].as_py(), law)
        if pattern == _INTEGER:
            column = pc.replace_substring_regex(column, r"^\+|\.0*$", "")
        try:
            column = column.cast(kinds[pattern])
        except pa.ArrowInvalid:
            row, got = next((row, text) for row, text in enumerate(column.to_pylist()) if not _is_date(text))
            raise source.error(row, name, got, "a date of the calendar") from None
    _refuse_missing(source, column, name)
    if pa.types.is_timestamp(column.type):
        microseconds = _numpy(column.cast(pa.timestamp("us")).cast(pa.int64()))
        return microseconds if (microseconds % 1_000_000).any() else microseconds // 1_000_000
    try:
        return _numpy(column.cast(pa.int64()))
    except pa.ArrowInvalid:
        raise DataError(message(f"{source.path}: {name}", pc.max(column).as_py(), "integers below 2**63")) from None


def _whole(source: Source, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Floating-point numbers as the integers that they are."""
    _refuse_missing(source, column, name)
    fits = pc.and_(pc.equal(pc.trunc(column), column), pc.less(pc.abs(column), 2.0**53))
    if not pc.all(fits).as_py():
        row = fits.index(False).as_py()
        raise source.error(row, name, column[row].as_py(), "a whole number")
    return column.cast(pa.int64())


def _trimmed(source: Source, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Text without blanks around it; empty text is a missing value."""
    try:
        column = pc.utf8_trim_whitespace(column.cast(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(message(f"{source.path}: {name}", str(column.type), "numbers, text or dates")) from None
    missing = pc.equal(column, "")
    _refuse_missing(source, pc.if_else(missing, pa.scalar(None, pa.string()), column), name)
    return column


def _refuse_missing(source: Source, column: pa.ChunkedArray, name: str) -> None:
    missing = pc.is_null(column, nan_is_null=True)
    if pc.any(missing).as_py():
        rows = pc.sum(missing).as_py()
        law = "a value in every row" + (f" ({rows} are missing)" if rows > 1 else "")
        raise source.error(missing.index(True).as_py(), name, None, law)


def _numpy(column: pa.ChunkedArray) -> IntArray:
    return np.from_dlpack(column.combine_chunks()).astype(np.int64, copy=False)


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
