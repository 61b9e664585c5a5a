"""A raw file -> a canonical file: ids encoded densely, the papers' one-pass filter, rows sorted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqrec.data import interactions, raw
from seqrec.data.tables import IntArray
from seqrec.errors import DataError, message


@dataclass(frozen=True)
class Counts:
    """Size of a set of interactions."""

    users: int
    items: int
    interactions: int

    @classmethod
    def of(cls, user: IntArray, item: IntArray) -> Counts:
        return cls(len(np.unique(user)), len(np.unique(item)), len(user))


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote."""

    file: Path
    user_ids: Path
    """Parquet with the columns user_id (encoded) and original; item_ids likewise."""
    item_ids: Path
    before: Counts
    after: Counts
    digest: str


def prepare(
    source: Path,
    out: Path,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    order_column: str | None = None,
    min_item_users: int = 1,
    min_user_items: int = 1,
) -> Prepared:
    """Writes `out`, and the original ids beside it. Columns that are None are recognised by name.

    The filter is that of the RECE and SCE papers (5 users an item, 20 items a user): one pass of `one_pass_filter`, no
    k-core. Repeated interactions are kept, as published. Raises DataError that names file and line.
    """
    for key, least in (("--min-item-users", min_item_users), ("--min-user-items", min_user_items)):
        if least < 1:
            raise DataError(message(key, least, "an integer >= 1"))
    files = [out, out.with_suffix(".users.parquet"), out.with_suffix(".items.parquet")]
    if out.suffix != ".parquet" or source.resolve() in [file.resolve() for file in files]:
        raise DataError(message("--out", str(out), "a file of its own that ends in .parquet"))
    columns = {"user": user_column, "item": item_column, "time": time_column, "order": order_column}
    table = raw.read(source, columns)
    before = Counts.of(table.user, table.item)
    kept = np.flatnonzero(one_pass_filter(table.user, table.item, min_item_users, min_user_items))
    if not len(kept):
        law = "a filter that leaves something"
        raise DataError(message("--min-item-users, --min-user-items", (min_item_users, min_user_items), law))
    rows = kept[np.lexsort((table.time[kept], table.user[kept]))]
    users, user = np.unique(table.user[rows], return_inverse=True)
    items, item = np.unique(table.item[rows], return_inverse=True)
    time = table.time[rows]
    if not table.has_timestamps:
        twice = np.flatnonzero((user[1:] == user[:-1]) & (time[1:] == time[:-1])) + 1
        if len(twice):
            row = int(twice[0])
            owner = table.user_ids[int(table.user[rows[row]])].as_py()
            law = f"a place that user {owner} has once"
            raise table.source.error(int(rows[row]), "order", int(time[row]), law)
    canonical = {
        "user_id": user.astype(np.int32),
        "item_id": item.astype(np.int32),
        "timestamp" if table.has_timestamps else "order": time,
    }
    originals = [(users, "user_id", table.user_ids), (items, "item_id", table.item_ids)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for file, (codes, name, ids) in zip(files[1:], originals, strict=True):
            _write({name: np.arange(len(codes), dtype=np.int32), "original": ids.take(pa.array(codes))}, file)
        _write(canonical, out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error}).") from None
    digest = interactions.read(str(out)).digest
    return Prepared(out, files[1], files[2], before, Counts.of(user, item), digest)


def one_pass_filter(user: IntArray, item: IntArray, min_item_users: int, min_user_items: int) -> NDArray[np.bool_]:
    """(n,) rows that stay: of items with enough distinct users, then of users with enough distinct such items.

    Not repeated until nothing changes: afterwards an item may have fewer users than asked for.
    """
    n_items = int(item.max()) + 1
    pairs = np.unique(user * n_items + item)
    keep_item = np.bincount(pairs % n_items) >= min_item_users
    pairs = pairs[keep_item[pairs % n_items]]
    keep_user = np.bincount(pairs // n_items, minlength=int(user.max()) + 1) >= min_user_items
    return keep_item[item] & keep_user[user]


def _write(columns: dict[str, object], file: Path) -> None:
    """All or nothing: another process sees the old file or the whole new one."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        pq.write_table(pa.table(columns), partial, compression="zstd")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
