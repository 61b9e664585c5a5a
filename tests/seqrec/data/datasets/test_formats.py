"""Every data set from a hand-made file in its raw format, hostile lines included: exact rows, exact complaints."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from seqrec.data.datasets import lines
from seqrec.data.datasets.columnar import Columnar
from seqrec.data.datasets.delimited import Delimited
from seqrec.data.datasets.lines import JsonLines
from seqrec.data.datasets.pipeline import Limits
from seqrec.data.datasets.registry import DATA_SETS, named
from seqrec.data.datasets.rows import Block

Run = Callable[..., Any]

BEERS = """{'beer/name': "Bob's", 'beer/beerId': '47986', 'review/profileName': 'stcules', 'review/time': '1234817823'}
{"beer/beerId": 7, "review/profileName": "zo\\u00eb\\tx", "review/time": 1234817820, "review/text": "a 'quote'"}\r

{}
{'beer/beerId': '7', 'review/profileName': '', 'review/time': '1234817824', 'review/text': 'bad \\d escape'}
{'beer/beerId': '7', 'review/profileName': 'stcules', 'review/time': '1234817822'}
"""


def test_beeradvocate_as_python_dictionaries(run: Run) -> None:
    found = run("beeradvocate", "beeradvocate.json.gz", gzip.compress(BEERS.encode()))
    assert found.rows == [
        ("stcules", 7, 1234817822),
        ("stcules", 47986, 1234817823),
        ("zoë\tx", 7, 1234817820),
    ], "beer ids sort by value"
    assert found.done.left_out == {"without a user": 1, "empty records": 1}
    assert found.done.sizes["read"] == (2, 2, 3)


RECORDS = b"""beer/name: Sausa Weizen\r
beer/beerId: 47986\r
review/time: 1234817823\r
review/profileName: stcules\r
review/text: a lot of foam. beer/beerId: 9\r
\r
\r
beer/name: caf\xe9 that is no UTF-8
beer/beerId: 7
review/time: 1234817820
review/profileName: a: b, c

beer/beerId: 7
review/profileName:
review/time: 1234817824"""


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20], ids=lambda size: f"{size} bytes")
def test_beeradvocate_as_records(run: Run, size: int) -> None:
    found = run("beeradvocate", "beeradvocate.txt.gz", gzip.compress(RECORDS), limits=Limits(block_bytes=size))
    assert found.rows == [("a: b, c", 7, 1234817820), ("stcules", 47986, 1234817823)]
    assert found.done.left_out == {"without a user": 1, "empty records": 0}


def test_behance_keeps_leading_zeros(run: Run) -> None:
    text = b"276633 01588231 1307583271\n1238354\t01529213  1307583273 \r\n\n276633 1588231 1307583270"
    found = run("behance", "Behance_appreciate_1M.gz", gzip.compress(text))
    assert found.rows == [
        ("1238354", "01529213", 1307583273),
        ("276633", "1588231", 1307583270),
        ("276633", "01588231", 1307583271),
    ]


REVIEWS = """{"reviewerID": "A2", "asin": "B00", "summary": "\\" \\u2028", "overall": 5.0, "unixReviewTime": 1252800000}
{"reviewerID": "A1", "asin": "0980", "reviewText": "tab\\tzoë {", "overall": 3, "unixReviewTime": 1252800001}
"""


def test_amazon_2014_reviews(run: Run) -> None:
    found = run("amazon_beauty_2014", "reviews_Beauty_5.json.gz", gzip.compress(REVIEWS.encode()))
    assert found.rows == [("A1", "0980", 1252800001), ("A2", "B00", 1252800000)]


def test_amazon_2014_ratings(run: Run) -> None:
    text = b"A2,B00,5.0,1252800000\r\nA1,0980,3.0,1252800001\n"
    found = run("amazon_kindle_2014", "ratings_Kindle_Store.csv", text, rating_above=3.0)
    assert found.rows == [("A2", "B00", 1252800000)], "3 is not above 3"
    assert found.done.sizes == {"read": (2, 2, 2), "chosen": (1, 1, 1), "after filter": (1, 1, 1)}


def test_amazon_2023_counts_milliseconds(run: Run) -> None:
    text = b'user_id,parent_asin,rating,timestamp\n"A,1",B00,4.0,1588687728923\nA2,B01,3.0,1588687728000\n'
    found = run("amazon_beauty_2023", "Beauty_and_Personal_Care.csv.gz", gzip.compress(text), rating_above=3.0)
    assert found.rows == [("A,1", "B00", 1588687728923)]


def test_yelp_reads_dates(run: Run) -> None:
    text = (
        '{"review_id":"K","user_id":"mh_-","business_id":"XQ","stars":3.0,"text":"\\n","date":"2018-07-07 22:09:11"}\n'
        '{"review_id":"L","user_id":"Aé","business_id":"XQ","stars":5.0,"date":"1999-12-31 23:59:59"}'
    )
    found = run("yelp", "yelp_academic_dataset_review.json", text.encode())
    assert found.rows == [("Aé", "XQ", 946684799), ("mh_-", "XQ", 1531001351)]


def test_gowalla_is_newest_first(run: Run) -> None:
    text = (
        "0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t22847\n"
        "0\t2010-10-18T22:17:43Z\t30.2\t-97.7\t420315\n"
        "0\t2010-10-18T22:17:43Z\t30.2\t-97.7\t5\n"
    )
    found = run("gowalla", "loc-gowalla_totalCheckins.txt.gz", gzip.compress(text.encode()))
    assert [item for _, item, _ in found.rows] == [5, 420315, 22847], "of one moment, the later line is the older event"
    assert found.rows[0] == (0, 5, 1287440263)
    assert found.done.simultaneous == 1


def zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return packed.getvalue()


FILMS = b"userId,movieId,rating,timestamp\n10,2,3.5,1112486027\n9,2,3.0,1112486027\n10,29,0.5,1112484676\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("ml-20m/ratings.csv", FILMS),
        ("ratings.csv", FILMS.replace(b"\n", b"\r\n")),
        ("ml-20m.zip", zipped(**{"ml-20m/README.txt": b"x", "ml-20m/ratings.csv": FILMS})),
    ],
    ids=["folder", "file", "zip"],
)
def test_movielens(run: Run, file: str, content: bytes) -> None:
    assert run("ml_20m", file, content).rows == [(9, 2, 1112486027), (10, 29, 1112484676), (10, 2, 1112486027)]


SESSION = (
    'event.session\t287144\t1390231051\t{"numtracks":2,"playtime":445}%s{"subjects":[{"type":"user","id":44361}],'
    '"objects":[{"type":"track","id":4698874,"playstart":0,"playtime":-1,"playratio":null,"action":"start"},'
    '{"type":"track","id":838,"playstart":230,"playtime":215}]}\r\n'
)


@pytest.mark.parametrize("between", [" ", "\t"], ids=["blank", "tab"])
def test_30music_has_an_event_for_every_track(run: Run, between: str) -> None:
    text = SESSION % between + '\nevent.session\t2\t1390231000\t{} {"subjects":[{"id":7}],"objects":[]}\n'
    found = run("30music", "relations/sessions.idomaar", text.encode())
    assert found.rows == [(44361, 4698874, 1390231051), (44361, 838, 1390231281)]


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


NOON = datetime(2023, 1, 15, 12, 0, 0, 250_000)


@pytest.mark.parametrize("unit", ["us", "ns", "ms"])
def test_zvuk_in_parquet(run: Run, unit: str) -> None:
    content = parquet(
        user_id=pa.array([3, 1, 3], pa.uint32()),
        session_id=[1, 2, 1],
        track_id=[9, 9, 8],
        play_duration=[1.0, 2.0, 3.0],
        datetime=pa.array([NOON, NOON, NOON], pa.timestamp(unit)),
    )
    time = 1673784000_250_000
    found = run("zvuk", "zvuk-interactions.parquet", content, limits=Limits(batch_rows=2))
    assert found.rows == [(1, 9, time), (3, 9, time), (3, 8, time)]


def test_zvuk_in_csv(run: Run) -> None:
    head = b"user_id,session_id,datetime,item_id,play_duration\n"
    text = head + b"3,1,2023-01-15 12:00:00.25,9,1.0\n3,1,2023-01-15 12:00:00,8,\n"
    found = run("zvuk", "zvuk-interactions.csv", text)
    assert found.rows == [(3, 8, 1673784000_000_000), (3, 9, 1673784000_250_000)]


def test_megamarket_keeps_purchases(run: Run) -> None:
    content = parquet(
        user_id=["b", "a", "b"], item_id=[5, 6, 7], event=pa.array([2, 2, 0], pa.int8()), datetime=[NOON, NOON, NOON]
    )
    found = run("megamarket", "megamarket.parquet", content, "replay", min_item_rows=1, min_user_rows=1)
    assert [(user, item) for user, item, _ in found.rows] == [("a", 6), ("b", 5)]
    assert found.done.sizes["read"] == (2, 3, 3)


# ---------------------------------------------------------------------------------------------------- the obvious twins

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, st.integers(0, 2**40), st.floats(0, 5)), min_size=1, max_size=6))
def test_json_is_read_alike_the_fast_way_and_the_slow(rows: list[tuple[str, str, int, float]]) -> None:
    form = named("amazon_beauty_2014").files[0].form
    assert isinstance(form, JsonLines)
    text = "\n".join(
        json.dumps({"x": user, "asin": item, "unixReviewTime": time, "overall": value, "reviewerID": user})
        for user, item, time, value in rows
    )
    block = Block("x", text.encode(), 1)
    slow = lines._slow(block, form.names, lines._json).columns
    fast = form.parse(block).columns
    for role, column in fast.items():
        assert [str(value) for value in column.to_pylist()] == [str(value) for value in slow[role].to_pylist()]


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6), st.booleans())
def test_columns_are_read_alike_the_fast_way_and_the_slow(rows: list[tuple[str, str, str]], quoted: bool) -> None:
    form = Delimited({"user": ("a",), "time": ("c",)}, columns=("a", "b", "c"), quoted=quoted, delimiter=",")

    def cell(value: str) -> str:
        return '"' + value.replace('"', '""') + '"' if quoted else value.replace(",", "").replace('"', "")

    text = "\n".join(",".join(map(cell, row)) for row in rows)
    block = Block("x", text.encode(), 1)
    names = {"user": "a", "time": "c"}
    fast, slow = form._fast(block, ["a", "b", "c"], names), form._slow(block, ["a", "b", "c"], names)
    for role in ("user", "time"):
        assert fast.columns[role].to_pylist() == slow.columns[role].to_pylist()


def test_every_data_set_says_where_it_comes_from() -> None:
    assert len(DATA_SETS) == 11
    for name, data_set in DATA_SETS.items():
        assert name == data_set.name
        assert data_set.publisher
        assert data_set.terms
        assert data_set.citation.endswith(".")
        assert "none" in data_set.protocols
        for raw in data_set.files:
            assert isinstance(raw.form, Columnar) == raw.pattern.endswith(".parquet")
