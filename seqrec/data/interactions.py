"""Canonical interaction files: who took what, when.

Parquet with integer columns user_id, item_id, and timestamp or order; in memory sorted by (user, time, row).

pyarrow and numpy only, and no pandas: planning a sweep reads a data set and should not wait for imports.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqrec import remote
from seqrec.config import suggest
from seqrec.data.tables import IntArray, Interactions, in_order
from seqrec.errors import DataError, message

BUNDLED = Path(__file__).parent / "bundled"
PREPARE = "python -m seqrec.data prepare turns other files into this form"


def bundled_names() -> list[str]:
    """Data sets that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.parquet"))


def read(path: str) -> Interactions:
    """A canonical file, or a bundled set by name, checked and sorted by (user, time, row).

    path: a file, a bundled set, or an address with a scheme; the digest is of the rows, wherever they lie.
    Columns beside the canonical ones are ignored. Raises DataError that names file, first bad row (counted from 1) and
    law; UserError for an address that cannot be read.
    """
    if remote.is_remote(path):
        told = remote.conceal(path)
        return _read(pa.BufferReader(remote.fetch(path, "data.path")), Path(urlsplit(told).path), told)
    bundled = BUNDLED / f"{path}.parquet"
    file = bundled if path in bundled_names() else Path(path)
    if not file.is_file():
        names = ", ".join(bundled_names())
        hint = suggest(path, bundled_names())
        raise DataError(message("data.path", path, f"a canonical parquet file or a bundled data set ({names})", hint))
    return _read(file, file, str(file))


def _read(source: Path | pa.BufferReader, file: Path, told: str) -> Interactions:
    """file: gives the name; told: what errors call it."""
    try:
        parquet = pq.ParquetFile(source)
        columns = parquet.schema_arrow.names
        kinds = [kind for kind in ("timestamp", "order") if kind in columns]
        wanted = ["user_id", "item_id", *kinds]
        if any(columns.count(name) != 1 for name in wanted) or len(kinds) != 1:
            law = "user_id, item_id, and one of timestamp and order, each once"
            raise DataError(message(f"{told}: columns", ", ".join(columns), law, PREPARE))
        if parquet.metadata.num_rows == 0:
            raise DataError(message(f"{told}: rows", 0, "at least one interaction"))
        user, item = (_integers(parquet, name, told, least=0) for name in ("user_id", "item_id"))
        time = _integers(parquet, kinds[0], told)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{told}: is not a parquet file that can be read: {reason}. hint: {PREPARE}") from None
    return _sorted(user, item, time, has_timestamps=kinds == ["timestamp"], file=file, told=told)


def _integers(parquet: pq.ParquetFile, name: str, told: str, least: int | None = None) -> IntArray:
    """A column as int64, read a batch at a time: memory is that of the result.

    Raises DataError for its first value that is missing, too large or below `least`.
    """
    kind = parquet.schema_arrow.field(name).type
    if not pa.types.is_integer(kind):
        raise DataError(message(f"{told}: {name}", str(kind), "a column of integers", PREPARE))
    values = np.empty(parquet.metadata.num_rows, dtype=np.int64)
    rows = 0
    for batch in parquet.iter_batches(columns=[name]):
        column = batch.column(0)
        if column.null_count or (kind == pa.uint64() and pc.max(column).as_py() >= 2**63):
            raise _refused(parquet.read(columns=[name])[name], name, told)
        values[rows : rows + len(column)] = np.from_dlpack(column)
        rows += len(column)
    if least is not None and values.min() < least:
        first = int(np.argmax(values < least))
        found = int(np.count_nonzero(values < least))
        raise _bad_row(told, name, first + 1, found, int(values[first]), f"an integer >= {least}")
    return values


def _refused(column: pa.ChunkedArray, name: str, told: str) -> DataError:
    """What is wrong with a whole column that has missing or too large values."""
    if column.null_count:
        bad = pc.is_null(column)
        law, got = "an integer in every row", "nothing"
    else:
        bad = pc.greater_equal(column, pa.scalar(2**63, pa.uint64()))
        law, got = "an integer below 2**63", column[bad.index(True).as_py()].as_py()
    return _bad_row(told, name, bad.index(True).as_py() + 1, pc.sum(bad).as_py(), got, law)


def _bad_row(told: str, name: str, row: int, rows: int, got: object, law: str) -> DataError:
    more = f" ({rows} such rows)" if rows > 1 else ""
    return DataError(f"{told}: {name}, row {row}: got {got}; expected {law}{more}.")


def _sorted(
    user: IntArray, item: IntArray, time: IntArray, *, has_timestamps: bool, file: Path, told: str
) -> Interactions:
    row = None
    # Prepared files are sorted already; lexsort is stable, so that events of one moment stay in the order of the file.
    if not in_order(user, time):
        row = np.lexsort((time, user))
        user = user[row]
        item = item[row]
        time = time[row]
    if not has_timestamps:
        twice = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
        if twice.any():
            first = int(np.argmax(twice))
            one, other = (first, first + 1) if row is None else (row[first], row[first + 1])
            where = f"{told}: order, rows {one + 1} and {other + 1}"
            raise DataError(f"{where}: got {time[first]} twice for user {user[first]}; expected a place of its own.")
    return Interactions(user, item, time, has_timestamps, file.stem, _digest(user, item, time, has_timestamps))


def _digest(user: IntArray, item: IntArray, time: IntArray, has_timestamps: bool) -> str:
    digest = hashlib.sha256(b"timestamp" if has_timestamps else b"order")
    for column in (user, item, time):
        digest.update(column.astype("<i8", copy=False).data)
    return digest.hexdigest()
