"""What breaks the law of a raw format: file, line, column, value and law are named, and nothing is written."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqrec.errors import DataError

Run = Callable[..., Any]

BEER, BEHANCE, REVIEWS = "beeradvocate.json.gz", "Behance_appreciate_1M.gz", "reviews_Beauty_5.json"
BEAUTY, YELP, GOWALLA = (
    "Beauty_and_Personal_Care.csv",
    "yelp_academic_dataset_review.json",
    "loc-gowalla_totalCheckins.txt",
)
RECORDS, RATINGS, FILMS, SESSIONS = "beeradvocate.txt.gz", "ratings_Beauty.csv", "ratings.csv", "sessions.idomaar"

OWNERS = {
    BEER: "beeradvocate",
    RECORDS: "beeradvocate",
    BEHANCE: "behance",
    REVIEWS: "amazon_beauty_2014",
    RATINGS: "amazon_beauty_2014",
    BEAUTY: "amazon_beauty_2023",
    YELP: "yelp",
    GOWALLA: "gowalla",
    FILMS: "ml_20m",
    SESSIONS: "30music",
}
"""Raw file -> data set."""

A_BEER = "{'beer/beerId': '7', 'review/profileName': 'x', 'review/time': '1234817823'}\n"
A_REVIEW = '{"reviewerID": "A1", "asin": "B", "overall": 3, "unixReviewTime": 1252800001}\n'
A_YELP = '{"user_id": "u", "business_id": "b", "stars": 1.0, "date": "2018-07-07 22:09:11"}\n'
A_CHECK_IN = "0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t22847\n"
A_SESSION = 's\t1\t1390231051\t{} {"subjects":[{"id":4}],"objects":[{"id":8,"playstart":230}]}\n'
FILMS_HEAD, BEAUTY_HEAD = "userId,movieId,rating,timestamp\n", "user_id,parent_asin,rating,timestamp\n"
NOON = datetime(2023, 1, 15, 12, 0, 0, 250_000)


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (BEER, A_BEER + "\n" + A_BEER[:20], "line 3: got \"{'beer/beerId': '7',\"; expected a Python dictionary or"),
        (BEER, "{[]: 1}", "line 1: got '{[]: 1}'; expected a Python dictionary or a JSON object in every line."),
        (BEER, "__import__('os')\n", "line 1: got \"__import__('os')\"; expected a Python dictionary"),
        (BEER, "\n" + A_BEER.replace("beerId", "id"), "line 2, beer/beerId: got None; expected a value in every row."),
        (
            BEER,
            A_BEER.replace("'7'", "'-3'"),
            "line 1, beer/beerId: got '-3'; expected an integer from 0 to 2**63 - 1.",
        ),
        (RECORDS, "beer/beerId: 7\nreview/profileName: x\n\n", "line 1, review/time: got None; expected a value in"),
        (RECORDS, "beer/beerId: 7\nbeer/beerId: 8\n", "line 2, beer/beerId: got '8'; expected each key once"),
        (BEHANCE, "1 2 1307583271\n\n1 2\n", "line 3: got 2 values; expected 3 (user, item, timestamp)."),
        (
            BEHANCE,
            "1 2 1307583271\n1 2 130758327",
            "line 2, timestamp: got '130758327'; expected a time from 1990-01-01",
        ),
        (
            BEHANCE,
            "1 2 1307583271000\n",
            "got '1307583271000'; expected a time from 1990-01-01 to 2040-01-01 in seconds",
        ),
        (
            BEHANCE,
            "1 2 -5\n1 2 -5\n",
            "1, timestamp: got '-5'; expected a time from 1990-01-01 to 2040-01-01 in seconds",
        ),
        (BEHANCE, "1 2 -5\n1 2 -5\n", "since 1970 (2 such rows in this part of the file)."),
        (BEHANCE, "1 2 nan\n", "line 1, timestamp: got 'nan'; expected a whole number of seconds since 1970."),
        (
            REVIEWS,
            A_REVIEW + A_REVIEW[:20],
            'line 2: got \'{"reviewerID": "A1",\'; expected a JSON object in every line.',
        ),
        (REVIEWS, A_REVIEW + "[1]", "line 2: got '[1]'; expected a JSON object."),
        (REVIEWS, A_REVIEW.replace("3", "NaN"), "line 1, overall: got nan; expected a value in every row."),
        (REVIEWS, A_REVIEW.replace("3", "Infinity"), "line 1, overall: got inf; expected a finite number."),
        (REVIEWS, A_REVIEW.replace('"B"', '["B"]'), "line 1, asin: got ['B']; expected a number or text."),
        (REVIEWS, A_REVIEW.replace("A1", " "), "line 1, reviewerID: got ''; expected a value in every row."),
        (RATINGS, "A,B,5.0,1252800000\nA,B,nan,1252800000\n", "line 2, rating: got 'nan'; expected a finite number."),
        (
            BEAUTY,
            BEAUTY_HEAD + "A,B,5.0,1588687728\n",
            "line 2, timestamp: got '1588687728'; expected a time from 1990",
        ),
        (BEAUTY, BEAUTY_HEAD.replace("parent_", ""), "timestamp'; expected one column named parent_asin."),
        (
            BEAUTY,
            BEAUTY_HEAD + '"A,B,5,1588687728000\nC,"D,4,1\n',
            "line 2: got '\"A,B,5,1588687728000'; expected closed",
        ),
        (
            YELP,
            A_YELP + A_YELP.replace("07-07", "02-30"),
            "2, date: got '2018-02-30 22:09:11'; expected a date of the cal",
        ),
        (
            YELP,
            A_YELP.replace("22:", ""),
            "line 1, date: got '2018-07-07 09:11'; expected a date and time YYYY-MM-DD HH",
        ),
        (
            GOWALLA,
            A_CHECK_IN + A_CHECK_IN.replace("Z", ""),
            "line 2, check-in time: got '2010-10-19T23:55:27'; expected",
        ),
        (GOWALLA, A_CHECK_IN.replace("22847", "x"), "line 1, location id: got 'x'; expected an integer from 0"),
        (FILMS, FILMS_HEAD + "1,2,3.5,1112486027\n1,2,3.5\n", "line 3: got 3 values; expected 4 (userId, movieId,"),
        (FILMS, FILMS_HEAD + f"1,{10**20},3.5,1112486027\n", f"line 2, movieId: got '{10**20}'; expected an integer"),
        (FILMS, FILMS_HEAD, "rows: got 0; expected at least one interaction."),
        (FILMS, 'userId,"movieId\n', "line 1: got 'userId,\"movieId'; expected closed quotes"),
        (FILMS, "", "line 1, columns: got ''; expected one column named userId."),
        (SESSIONS, "s\t1\t1390231051\n", "line 1: got 3 values; expected 4 (type, id, timestamp, JSON)."),
        (
            SESSIONS,
            A_SESSION + A_SESSION.replace("139", "E"),
            "line 2, timestamp: got 'E0231051'; expected a whole number",
        ),
        (SESSIONS, A_SESSION + A_SESSION.replace("230}", "-2}"), "line 2, objects.playstart: got -2; expected a whole"),
        (SESSIONS, A_SESSION.replace('"id":8,', ""), "line 1, objects.id: got None; expected a whole number >= 0."),
        (SESSIONS, A_SESSION.replace("4}", f'"{"4" * 5000}"}}'), "line 1, subjects.id: got '4444"),
        (SESSIONS, A_SESSION[:-9], 'line 1: got \'{} {"subjects"'),
        (SESSIONS, A_SESSION.replace('{"id":4}', ""), "line 1, subjects: got []; expected a list with one user."),
    ],
)
def test_a_broken_line_is_named(run: Run, tmp_path: Path, file: str, text: str, words: str) -> None:
    content = text.encode()
    with pytest.raises(DataError) as refusal:
        run(OWNERS[file], file, gzip.compress(content) if file.endswith(".gz") else content)
    assert str(refusal.value).startswith(f"{tmp_path / 'raw' / file}: ")
    assert words in str(refusal.value)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"user_id": [1, None]}, "row 2, user_id: got None; expected a value in every row."),
        ({"user_id": [1.0, 2.5]}, "row 2, user_id: got 2.5; expected an integer from 0"),
        ({"item_id": [-1, 3]}, "row 1, item_id: got -1; expected an integer from 0"),
        ({"item_id": pa.array([1, 2**63], pa.uint64())}, f"row 2, item_id: got {2**63}; expected an integer from 0"),
        ({"event": [2.0, float("nan")]}, "row 2, event: got nan; expected a value in every row."),
        ({"event": [2.0, float("inf")]}, "row 2, event: got inf; expected a finite number."),
        ({"datetime": [1, 2]}, "row 1, datetime: got 'int64'; expected a date and time"),
        (
            {"datetime": [NOON, datetime(1970, 1, 1)]},
            "row 2, datetime: got datetime.datetime(1970, 1, 1, 0, 0); expected",
        ),
        ({"when": [1, 2], "datetime": None}, "columns: got 'user_id, item_id, event, when'; expected one column"),
    ],
)
def test_a_bad_row_of_a_parquet_file_is_named(run: Run, columns: dict[str, Any], words: str) -> None:
    good = {"user_id": [1, 2], "item_id": [1, 2], "event": [2, 2], "datetime": [NOON, NOON]}
    table = {name: values for name, values in (good | columns).items() if values is not None}
    with pytest.raises(DataError) as refusal:
        run("megamarket", "megamarket.parquet", parquet(**table))
    assert words in str(refusal.value)


def test_bytes_that_are_no_text_matter_where_they_are_read(run: Run) -> None:
    head = b"user_id,session_id,datetime,item_id,play_duration\n"
    row = b"3,\xff,2023-01-15 12:00:00,9,1.0\n"
    assert run("zvuk", "zvuk-interactions.csv", head + row).rows == [(3, 9, 1673784000_000_000)]
    with pytest.raises(DataError, match=r"line 3, user_id: got '\\udcff3'; expected text in UTF-8"):
        run("zvuk", "zvuk-interactions.csv", head + row + b"\xff" + row)


@pytest.mark.parametrize(
    ("time", "accepted"), [(631151999, False), (631152000, True), (2208988799, True), (2208988800, False)]
)
def test_the_bounds_of_time(run: Run, time: int, accepted: bool) -> None:
    text = f"1 2 {time}\n".encode()
    if accepted:
        assert run("behance", "Behance_appreciate_1M", text).rows == [("1", "2", time)]
    else:
        with pytest.raises(DataError, match=f"got '{time}'; expected a time from 1990-01-01 to 2040-01-01 in seconds"):
            run("behance", "Behance_appreciate_1M", text)
