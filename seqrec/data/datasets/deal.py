"""Parts -> buckets: ids as ranks in their ascending lists, all events of a user in one bucket that fits in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqrec.data.datasets.parts import Parts
from seqrec.data.datasets.progress import Advance
from seqrec.data.tables import IntArray

BUCKET_ROWS = 8_000_000
"""Events of one bucket, unless a single user has more; sorting them takes about 60 bytes each."""

EVENT = np.dtype([("user", "<i4"), ("item", "<i4"), ("time", "<i8")])


class Events(NamedTuple):
    """Some events, column by column."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: IntArray

    def where(self, chosen: NDArray[Any]) -> Events:
        """Those of a mask, or of places."""
        return Events(self.user[chosen], self.item[chosen], self.time[chosen])


_PENDING_IDS = 4_000_000


@dataclass(frozen=True, eq=False)
class Buckets:
    """The chosen events, encoded. Bucket b holds users below those of bucket b + 1."""

    files: tuple[Path, ...]
    """Arrays of EVENT, sorted by (user, time, place in the raw file)."""
    user_ids: pa.Array
    """Ascending: integers by value, text by code points; of all events, chosen or not."""
    item_ids: pa.Array
    read: tuple[int, int, int]
    """users, items and events of the raw file"""
    chosen: tuple[int, int, int]
    """users, items and events chosen by rating or event"""

    def __iter__(self) -> Iterator[Events]:
        """Every bucket."""
        for file in self.files:
            bucket = np.fromfile(file, dtype=EVENT)
            yield Events(*(np.ascontiguousarray(bucket[name]) for name in Events._fields))


def deal(
    parts: Parts, folder: Path, advance: Advance, *, newest_first: bool, bucket_rows: int = BUCKET_ROWS
) -> Buckets:
    """Passes over the parts: their ids, their codes, their buckets; then every bucket is sorted.

    newest_first: of one moment, the later line of the raw file is the older event. advance counts parts, of
    4 * len(parts).
    """
    count = len(parts.files)
    users = _ids(parts, "user", lambda done: advance(done // 2, "users"))
    items = _ids(parts, "item", lambda done: advance((count + done) // 2, "items"))
    assert max(len(users), len(items)) < 2**31
    owned = np.zeros(len(users), dtype=np.int64)
    taken = np.zeros(len(items), dtype=bool)
    codes, rows = [], 0
    for number, part in enumerate(parts.files):
        table = pq.read_table(part)
        kept = _numpy(table["kept"].combine_chunks().cast(pa.int8())).astype(bool)
        coded = np.empty(int(kept.sum()), dtype=EVENT)
        coded["user"] = _codes(table["user"], users)[kept]
        coded["item"] = _codes(table["item"], items)[kept]
        coded["time"] = _numpy(table["time"].combine_chunks())[kept]
        owned += np.bincount(coded["user"], minlength=len(users))
        taken[coded["item"]] = True
        rows += table.num_rows
        codes.append(folder / f"codes-{number:06}.bin")
        coded.tofile(codes[-1])
        advance(count + number + 1, "encoding ids")
    last_users = _borders(owned, bucket_rows)
    files = tuple(folder / f"bucket-{number:04}.bin" for number in range(len(last_users)))
    with ExitStack() as stack:
        sinks = [stack.enter_context(file.open("wb")) for file in files]
        for number, file in enumerate(codes):
            coded = np.fromfile(file, dtype=EVENT)
            places = np.searchsorted(last_users, coded["user"])
            for place in np.unique(places):
                coded[places == place].tofile(sinks[place])
            file.unlink()
            advance(2 * count + number + 1, "dealing to buckets")
    for number, file in enumerate(files):
        bucket = np.fromfile(file, dtype=EVENT)[:: -1 if newest_first else 1]
        bucket[np.lexsort((bucket["time"], bucket["user"]))].tofile(file)
        advance(3 * count + count * (number + 1) // len(files), "sorting by user and time")
    chosen = (int((owned > 0).sum()), int(taken.sum()), int(owned.sum()))
    return Buckets(files, users, items, (len(users), len(items), rows), chosen)


def _borders(owned: IntArray, bucket_rows: int) -> IntArray:
    """(n_buckets,) the last user of every bucket: as many users as stay within `bucket_rows`, one at least."""
    ends = np.cumsum(owned)
    last: list[int] = []
    begun = 0
    while not last or last[-1] < len(owned) - 1:
        first = last[-1] + 1 if last else 0
        here = max(int(np.searchsorted(ends, begun + bucket_rows, side="right")) - 1, first)
        last.append(here)
        begun = int(ends[here])
    return np.array(last, dtype=np.int64)


def _ids(parts: Parts, name: str, advance: Callable[[int], None]) -> pa.Array:
    """The distinct ids of all parts, ascending. Memory: distinct ids, never rows."""
    known: list[pa.Array] = []
    pending = 0
    for number, part in enumerate(parts.files):
        found = pc.unique(pq.read_table(part, columns=[name])[name])
        known.append(found)
        pending += len(found)
        if pending > _PENDING_IDS:
            known, pending = [pc.unique(pa.chunked_array(known))], 0
        advance(number + 1)
    ids = pc.unique(pa.chunked_array(known))
    return ids.take(pc.sort_indices(ids))


def _codes(column: pa.ChunkedArray, ids: pa.Array) -> IntArray:
    """Places of a column's values in `ids`, which holds all of them."""
    encoded = column.combine_chunks().dictionary_encode()
    places: IntArray
    if pa.types.is_integer(ids.type):
        places = np.searchsorted(_numpy(ids), _numpy(encoded.dictionary)).astype(np.int64)
    else:
        places = _numpy(pc.index_in(encoded.dictionary, value_set=ids)).astype(np.int64)
    return np.take(places, _numpy(encoded.indices))


def _numpy(array: pa.Array) -> NDArray[Any]:
    return np.from_dlpack(array) if len(array) else np.zeros(0, dtype=np.int64)
