"""Buckets -> what a protocol keeps of them, counted, filtered and written one bucket at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqrec.data.datasets.deal import Buckets, Events
from seqrec.data.datasets.progress import Advance
from seqrec.data.datasets.protocols import Filters
from seqrec.data.tables import IntArray

Mask = NDArray[np.bool_]
_HASH_ROWS = 1_000_000
SCHEMA = pa.schema([("user_id", pa.int32()), ("item_id", pa.int32()), ("timestamp", pa.int64())])


@dataclass(frozen=True, eq=False)
class Shape:
    """Which users and items stay."""

    users: Mask
    items: Mask
    events: int
    duplicates_before: int
    """Events that repeat another of the same user, item and time, before the filters and after."""
    duplicates_after: int
    simultaneous: int
    """Events that stay at the moment of the user's event before them: their order is that of the raw file."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        return int(self.users.sum()), int(self.items.sum()), self.events


def shape(buckets: Buckets, filters: Filters, advance: Advance) -> Shape:
    """Two passes: which items stay, then which users. Nothing is repeated until it no longer changes: no k-core."""
    n_users, n_items = len(buckets.user_ids), len(buckets.item_ids)
    users_of = np.zeros(n_items, dtype=np.int64)
    rows_of = np.zeros(n_items, dtype=np.int64)
    repeated = 0
    for number, bucket in enumerate(buckets):
        users_of += np.bincount(_pairs(bucket, n_items) % n_items, minlength=n_items)
        rows_of += np.bincount(bucket.item, minlength=n_items)
        repeated += _duplicates(bucket)
        advance(number + 1, "counting items")
    good = (users_of >= filters.min_item_users) & (rows_of >= filters.min_item_rows)
    keep_user, keep_item = np.zeros(n_users, dtype=bool), np.zeros(n_items, dtype=bool)
    events = after = simultaneous = 0
    for number, bucket in enumerate(buckets):
        bucket = bucket.where(good[bucket.item])
        items_of = np.bincount(_pairs(bucket, n_items) // n_items, minlength=n_users)
        taken = np.bincount(bucket.user, minlength=n_users)
        here = (items_of >= filters.min_user_items) & (taken >= filters.min_user_rows)
        keep_user |= here
        bucket = bucket.where(here[bucket.user])
        keep_item[bucket.item] = True
        events += len(bucket.user)
        after += _duplicates(bucket)
        simultaneous += int(np.count_nonzero(_follows(bucket)))
        advance(len(buckets.files) + number + 1, "counting users")
    return Shape(keep_user, keep_item, events, repeated, after, simultaneous)


def write(buckets: Buckets, kept: Shape, file: Path, advance: Advance) -> None:
    """The canonical file: ids dense from 0 in their ascending order, rows by (user, time, place in the raw file)."""
    user, item = (np.cumsum(mask, dtype=np.int32) - np.int32(1) for mask in (kept.users, kept.items))
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for number, bucket in enumerate(buckets):
            bucket = bucket.where(kept.users[bucket.user] & kept.items[bucket.item])
            columns = [user[bucket.user], item[bucket.item], bucket.time]
            writer.write_table(pa.table(columns, schema=SCHEMA))
            advance(number + 1, "")


def digest(file: Path) -> str:
    """`Interactions.digest` of a canonical file that is sorted already, without reading it whole."""
    found = hashlib.sha256(b"timestamp")
    with pq.ParquetFile(file) as parquet:
        for name in SCHEMA.names:
            for batch in parquet.iter_batches(_HASH_ROWS, columns=[name]):
                found.update(np.from_dlpack(batch.column(0)).astype("<i8").data)
    return found.hexdigest()


def _pairs(bucket: Events, n_items: int) -> IntArray:
    """The distinct (user, item) pairs, as user * n_items + item."""
    return np.unique(bucket.user.astype(np.int64) * n_items + bucket.item)


def _duplicates(bucket: Events) -> int:
    """Sorted by (user, time), equal events stand in one run of a user's moment: only such runs are sorted by item."""
    follows, shared = _follows(bucket), np.zeros(len(bucket.user), dtype=bool)
    shared[1:] |= follows
    shared[:-1] |= follows
    crowded = bucket.where(shared)
    crowded = crowded.where(np.lexsort((crowded.item, crowded.time, crowded.user)))
    return int(np.count_nonzero(_follows(crowded) & (crowded.item[1:] == crowded.item[:-1])))


def _follows(bucket: Events) -> Mask:
    """(n - 1,) whether an event has the user and the moment of the one before it."""
    mask: Mask = (bucket.user[1:] == bucket.user[:-1]) & (bucket.time[1:] == bucket.time[:-1])
    return mask
