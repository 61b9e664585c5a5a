"""The filters of the protocols against an obvious twin, whatever the sizes of blocks and buckets."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from seqrec.data import interactions, prepare as generic
from seqrec.data.datasets.deal import _borders
from seqrec.data.datasets.pipeline import Limits, prepare
from seqrec.data.datasets.protocols import PROTOCOLS, RECE, REPLAY, Filters
from seqrec.data.datasets.registry import BOUGHT, DATA_SETS, LIKED, named
from seqrec.errors import DataError

Run = Callable[..., Any]
Event = tuple[int, int, float, int]
"""user, item, rating, time"""

START = 1_112_486_000
EVENT = st.tuples(
    st.integers(0, 6), st.integers(0, 6), st.sampled_from([1.0, 3.0, 3.5, 5.0]), st.integers(START, START + 3)
)
LEAST = st.integers(1, 4)


def kept(events: list[Event], filters: Filters) -> list[Event]:
    """The protocol, said slowly."""
    if filters.rating_above is not None:
        events = [event for event in events if event[2] > filters.rating_above]
    users, rows = defaultdict(set), Counter(item for _, item, _, _ in events)
    for user, item, _, _ in events:
        users[item].add(user)
    events = [e for e in events if len(users[e[1]]) >= filters.min_item_users and rows[e[1]] >= filters.min_item_rows]
    items, rows = defaultdict(set), Counter(user for user, _, _, _ in events)
    for user, item, _, _ in events:
        items[user].add(item)
    events = [e for e in events if len(items[e[0]]) >= filters.min_user_items and rows[e[0]] >= filters.min_user_rows]
    return sorted(events, key=lambda event: (event[0], event[3]))


def written(folder: Path, events: list[Event]) -> Path:
    lines = [f"{user},{item},{rating},{time}" for user, item, rating, time in events]
    raw = folder / "ratings.csv"
    raw.write_text("\n".join(["userId,movieId,rating,timestamp", *lines]))
    return raw


@settings(max_examples=60, deadline=None)
@given(
    st.lists(EVENT, min_size=1, max_size=60),
    st.builds(Filters, st.sampled_from([None, 3.0]), st.none(), LEAST, LEAST, LEAST, LEAST),
    st.integers(1, 200),
    st.integers(1, 70),
)
def test_filters_are_those_of_the_slow_twin(
    events: list[Event], filters: Filters, block_bytes: int, bucket_rows: int
) -> None:
    expected = kept(events, filters)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw, out = written(folder, events), folder / "out.parquet"
        limits = Limits(block_bytes=block_bytes, bucket_rows=bucket_rows)
        if not expected:
            with pytest.raises(DataError, match="expected filters that leave something"):
                prepare(named("ml_20m"), raw, out, filters, limits=limits)
            return
        done = prepare(named("ml_20m"), raw, out, filters, limits=limits)
        table = interactions.read(str(out))
    users, items = sorted({e[0] for e in expected}), sorted({e[1] for e in expected})
    rows = [
        (users[user], items[item], time)
        for user, item, time in zip(table.user_id, table.item_id, table.time, strict=True)
    ]
    assert rows == [(user, item, time) for user, item, _, time in expected]
    assert done.digest == table.digest
    assert done.sizes["after filter"] == (len(users), len(items), len(rows))
    chosen = [event for event in events if filters.rating_above is None or event[2] > filters.rating_above]
    assert done.sizes.get("chosen", done.sizes["read"])[2] == len(chosen)
    assert done.duplicates == len(rows) - len(set(rows))


def test_the_papers_filter_is_that_of_the_general_command(tmp_path: Path) -> None:
    draw = np.random.default_rng(7)
    events = [(int(u), int(i), 4.0, START + int(t)) for u, i, t in draw.integers(0, (30, 40, 500), (900, 3))]
    raw = written(tmp_path, events)
    ours = prepare(named("ml_20m"), raw, tmp_path / "ours.parquet", RECE, limits=Limits(bucket_rows=100))
    theirs = generic.prepare(raw, tmp_path / "theirs.parquet", min_item_users=5, min_user_items=20)
    assert ours.digest == theirs.digest
    assert ours.sizes["after filter"] == (theirs.after.users, theirs.after.items, theirs.after.interactions)
    assert 0 < theirs.after.interactions < 900, "a filter that does something"


def test_an_item_whose_users_are_all_left_out_goes_too(tmp_path: Path) -> None:
    # Item 1 has the two users it needs; neither has two items, so that it ends without any.
    events = [(1, 1, 5.0, START), (2, 1, 5.0, START), (3, 2, 5.0, START), (3, 3, 5.0, START)]
    events += [(4, 2, 5.0, START), (4, 3, 5.0, START)]
    filters = Filters(min_item_users=2, min_user_items=2)
    done = prepare(named("ml_20m"), written(tmp_path, events), tmp_path / "out.parquet", filters)
    assert done.sizes["after filter"] == (2, 2, 4)
    assert interactions.read(str(done.file)).item_id.tolist() == [0, 1, 0, 1]
    assert pq.read_table(done.item_ids)["original"].to_pylist() == [2, 3]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 20))
def test_buckets_hold_whole_users_and_no_more_than_they_may(owned: list[int], limit: int) -> None:
    last = _borders(np.array(owned, dtype=np.int64), limit).tolist()
    assert last == sorted(set(last))
    assert last[-1] == len(owned) - 1
    for first, end in zip([0, *(user + 1 for user in last)], last, strict=False):
        assert sum(owned[first : end + 1]) <= limit or first == end


def test_the_protocols_are_those_of_the_papers() -> None:
    assert Filters(min_item_users=5, min_user_items=20) == RECE
    assert Filters(min_item_rows=5, min_user_rows=3) == REPLAY
    defaults = {name: data_set.default for name, data_set in DATA_SETS.items()}
    assert defaults == {
        "beeradvocate": "rece",
        "behance": "rece",
        "amazon_beauty_2014": "none",
        "amazon_kindle_2014": "rece",
        "amazon_beauty_2023": "replay",
        "yelp": "rece",
        "gowalla": "rece",
        "ml_20m": "replay",
        "30music": "replay",
        "zvuk": "replay",
        "megamarket": "replay",
    }
    for name, filters in {"ml_20m": LIKED, "amazon_beauty_2023": LIKED, "megamarket": BOUGHT, "zvuk": REPLAY}.items():
        assert named(name).filters(None, {}) == filters
    assert (LIKED.rating_above, BOUGHT.event) == (3.0, 2.0)
    for data_set in DATA_SETS.values():
        assert data_set.protocols.keys() <= PROTOCOLS.keys()


def test_published_sizes_stand_beside_comparable_ones_alone() -> None:
    megamarket = named("megamarket")
    assert megamarket.stated(BOUGHT, "megamarket.parquet", "read") is not None, "the raw file is one"
    assert megamarket.stated(BOUGHT, "megamarket.parquet", "after filter") is None, "they count every event"
    assert megamarket.stated(REPLAY, "megamarket.parquet", "after filter") is not None
    beauty = named("amazon_beauty_2014")
    assert beauty.stated(Filters(), "ratings_Beauty.csv", "after filter") is None, "the 5-core is another file"
    stated = beauty.stated(Filters(), "reviews_Beauty_5.json.gz", "after filter")
    assert stated is not None
    assert (stated.users, stated.items, stated.interactions) == (22_363, 12_101, 198_502)
