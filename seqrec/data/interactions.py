"""Canonical interaction files: who took what, when.

Parquet with integer columns user_id, item_id, and timestamp or order; in memory sorted by (user, time, row).

pyarrow and numpy only, and no pandas: planning a sweep reads a data set and should not wait for imports.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqrec.config import suggest
from seqrec.data.tables import IntArray, Interactions
from seqrec.errors import DataError, message

BUNDLED = Path(__file__).parent / "bundled"
PREPARE = "python -m seqrec.data prepare turns other files into this form"


def bundled_names() -> list[str]:
    """Data sets that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.parquet"))


def read(path: str) -> Interactions:
    """A canonical file, or a bundled set by name, checked and sorted by (user, time, row).

    Columns beside the canonical ones are ignored. Raises DataError that names file, first bad row (counted from 1) and
    law.
    """
    bundled = BUNDLED / f"{path}.parquet"
    file = bundled if path in bundled_names() else Path(path)
    if not file.is_file():
        names = ", ".join(bundled_names())
        hint = suggest(path, bundled_names())
        raise DataError(message("data.path", path, f"a canonical parquet file or a bundled data set ({names})", hint))
    try:
        parquet = pq.ParquetFile(file)
        columns = parquet.schema_arrow.names
        kinds = [kind for kind in ("timestamp", "order") if kind in columns]
        wanted = ["user_id", "item_id", *kinds]
        if any(columns.count(name) != 1 for name in wanted) or len(kinds) != 1:
            law = "user_id, item_id, and one of timestamp and order, each once"
            raise DataError(message(f"{file}: columns", ", ".join(columns), law, PREPARE))
        table = parquet.read(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{file}: is not a parquet file that can be read: {reason}. hint: {PREPARE}") from None
    if table.num_rows == 0:
        raise DataError(message(f"{file}: rows", 0, "at least one interaction"))
    user, item = (_integers(table[name], name, file, least=0) for name in ("user_id", "item_id"))
    time = _integers(table[kinds[0]], kinds[0], file)
    return _sorted(user, item, time, has_timestamps=kinds == ["timestamp"], file=file)


def _integers(column: pa.ChunkedArray, name: str, file: Path, least: int | None = None) -> IntArray:
    """A column as int64. Raises DataError for its first value that is missing, too large or below `least`."""
    if not pa.types.is_integer(column.type):
        raise DataError(message(f"{file}: {name}", str(column.type), "a column of integers", PREPARE))
    if column.null_count:
        raise _bad_row(file, name, pc.is_null(column), "nothing", "an integer in every row")
    try:
        values = np.from_dlpack(column.cast(pa.int64()).combine_chunks()).astype(np.int64, copy=False)
    except pa.ArrowInvalid:
        largest = pc.max(column)
        raise _bad_row(file, name, pc.equal(column, largest), largest, "an integer below 2**63") from None
    if least is not None and values.min() < least:
        first = int(np.argmax(values < least))
        raise _bad_row(file, name, pc.less(column, least), int(values[first]), f"an integer >= {least}")
    return values


def _bad_row(file: Path, name: str, bad: pa.ChunkedArray, got: object, law: str) -> DataError:
    row, rows = bad.index(True).as_py() + 1, pc.sum(bad).as_py()
    more = f" ({rows} such rows)" if rows > 1 else ""
    return DataError(f"{file}: {name}, row {row}: got {got}; expected {law}{more}.")


def _sorted(user: IntArray, item: IntArray, time: IntArray, *, has_timestamps: bool, file: Path) -> Interactions:
    same_user = user[1:] == user[:-1]
    ordered = (user[1:] > user[:-1]) | (same_user & (time[1:] >= time[:-1]))
    # Prepared files are sorted already; lexsort is stable, so that events of one moment stay in the order of the file.
    row = np.arange(len(user)) if ordered.all() else np.lexsort((time, user))
    user, item, time = user[row], item[row], time[row]
    if not has_timestamps:
        twice = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
        if twice.any():
            first = int(np.argmax(twice))
            where = f"{file}: order, rows {row[first] + 1} and {row[first + 1] + 1}"
            raise DataError(f"{where}: got {time[first]} twice for user {user[first]}; expected a place of its own.")
    return Interactions(user, item, time, has_timestamps, file.stem, _digest(user, item, time, has_timestamps))


def _digest(user: IntArray, item: IntArray, time: IntArray, has_timestamps: bool) -> str:
    digest = hashlib.sha256(b"timestamp" if has_timestamps else b"order")
    for column in (user, item, time):
        digest.update(column.astype("<i8", copy=False).data)
    return digest.hexdigest()
