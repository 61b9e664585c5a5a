"""The adapter for raw files: recognised columns, ids, times, the papers' filter, mistakes by file and line."""

from __future__ import annotations

import gzip
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from seqrec.data import interactions
from seqrec.data.__main__ import main
from seqrec.data.prepare import one_pass_filter, prepare
from seqrec.errors import DataError

OUT = "out.parquet"


def rows_of(file: Path, kind: str = "timestamp") -> list[tuple[Any, Any, int]]:
    """(original user, original item, time) rows of a prepared file and its side files."""
    columns = pq.read_table(file).to_pydict()
    users = pq.read_table(file.with_suffix(".users.parquet")).to_pydict()
    items = pq.read_table(file.with_suffix(".items.parquet")).to_pydict()
    assert users["user_id"] == list(range(len(users["user_id"])))
    assert items["item_id"] == list(range(len(items["item_id"])))
    return [
        (users["original"][user], items["original"][item], time)
        for user, item, time in zip(columns["user_id"], columns["item_id"], columns[kind], strict=True)
    ]


@pytest.mark.parametrize("header", ["userid,itemid,timestamp", "user_id,item_id,time", "user_id:token,item:token,Date"])
def test_the_papers_csv_needs_no_options(tmp_path: Path, header: str) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text(f"{header}\n10,7,300\n9,8,100\n10,9,200\n")
    done = prepare(raw, tmp_path / OUT)
    assert rows_of(done.file) == [(9, 8, 100), (10, 9, 200), (10, 7, 300)], "ids sort by value, not as text"
    assert done.digest == interactions.read(str(done.file)).digest
    assert done.before == done.after


def test_a_tab_separated_file_with_its_own_names_and_text_ids(tmp_path: Path) -> None:
    raw = tmp_path / "raw.tsv"
    raw.write_text(
        'who\twhat\tnote\twhen\nzoë\t007\t"two\nlines"\t2\nann\t7\t\t1.0\n\nzoë\tx y\t\t1\n', encoding="utf-8"
    )
    done = prepare(raw, tmp_path / OUT, user_column="who", item_column="what", time_column="when")
    assert rows_of(done.file) == [("ann", "7", 1), ("zoë", "x y", 1), ("zoë", "007", 2)]


def test_a_compressed_file_with_an_order(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv.gz"
    raw.write_bytes(gzip.compress(b"user,item,position\n1,5,1\n1,6,0\n"))
    done = prepare(raw, tmp_path / OUT)
    assert rows_of(done.file, "order") == [(1, 6, 0), (1, 5, 1)]
    assert not interactions.read(str(done.file)).has_timestamps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2012-04-03 18:00:06", 1333476006),
        ("2012-04-03", 1333411200),
        ("2012-04-03T18:00:06Z", 1333476006),
        ("2012-04-03T18:00:06+02:00", 1333468806),
        ("2012-04-03T18:00:06.25", 1333476006_250000),
        ("1333476006.0", 1333476006),
        ("-5", -5),
    ],
)
def test_times(tmp_path: Path, text: str, expected: int) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text(f"user,item,time\n1,2,{text}\n")
    assert rows_of(prepare(raw, tmp_path / OUT).file) == [(1, 2, expected)]


NOON, MIDNIGHT = datetime(2012, 4, 3, 12), datetime(2012, 4, 4)


@pytest.mark.parametrize(
    ("users", "times", "expected"),
    [
        (["b", "a"], pa.array([NOON, MIDNIGHT], pa.timestamp("us", "UTC")), [("a", 1333497600), ("b", 1333454400)]),
        (["b", "a"], pa.array([NOON, MIDNIGHT], pa.date32()), [("a", 1333497600), ("b", 1333411200)]),
        (["b", "a"], pa.array([2500, 1000], pa.timestamp("ms")), [("a", 1_000_000), ("b", 2_500_000)]),
        (pa.array(["b", "a"]).dictionary_encode(), [5, 6], [("a", 6), ("b", 5)]),
        ([10.0, 2.0], [3.0, 4.0], [(2, 4), (10, 3)]),
        ([10, 2], ["3", "4"], [(2, 4), (10, 3)]),
    ],
)
def test_parquet_of_many_types(tmp_path: Path, users: Any, times: Any, expected: list[tuple[Any, int]]) -> None:
    raw = tmp_path / "raw.parquet"
    pq.write_table(pa.table({"user": users, "item": [1, 1], "time": times}), raw)
    assert [(user, time) for user, _, time in rows_of(prepare(raw, tmp_path / OUT).file)] == expected


@pytest.mark.parametrize(
    ("users", "times", "words"),
    [
        ([1.5, 2.0], [1, 1], "row 1, user: got 1.5; expected a whole number."),
        ([1, 2], [1.0, float("nan")], "row 2, time: got None; expected a value in every row."),
        ([1, 2], pa.array([1, None], pa.int64()), "row 2, time: got None; expected a value in every row."),
        ([[1], [2]], [1, 1], "user: got 'list<"),
    ],
)
def test_mistakes_of_a_parquet_file_name_the_row(tmp_path: Path, users: Any, times: Any, words: str) -> None:
    raw = tmp_path / "raw.parquet"
    pq.write_table(pa.table({"user": users, "item": [1, 1], "time": times}), raw)
    with pytest.raises(DataError) as refusal:
        prepare(raw, tmp_path / OUT)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user,item,time\n1,2,3\n1,,3\n", "line 3, item: got None; expected a value in every row."),
        ("user,item,time\n1,2,3\n\n1,2,x\n", "line 4, time: got 'x'; expected a whole number or an ISO date"),
        ('user,item,time,note\n1,2,3,"a\nb"\n1,2,3.5,\n', "line 4, time: got '3.5'; expected a whole number"),
        ("user,item,time\n1,2,2012-02-03\n1,2,2012-02-30\n", "line 3, time: got '2012-02-30'; expected a date of the"),
        ("user,item,time\n1,2,2012-02-03\n1,2,2012-02-03T01:00Z\n", "line 3, time: got '2012-02-03T01:00Z'"),
        ("user,item,time\n1,2,3\n1,2\n", "line 3: got 2 values; expected 3, as in the header."),
        ("user,item,position\n1,2,3\n2,2,3\n1,4,3\n", "line 4, order: got 3; expected a place that user 1 has once."),
        ("user,item,time\n", "rows: got 0; expected at least one interaction."),
        ("", "columns: got 'nothing'; expected a known name for the user. hint: name it with --user-column"),
        ("user,item,rating\n1,2,3\n", "expected a known name for the time or order."),
        ("user,item,asin,time\n1,2,3,4\n", "columns: got 'item, asin'; expected one item column. hint: choose with"),
        ("user,user,item,time\n1,2,3,4\n", "columns: got 'user, user'; expected one user column."),
    ],
)
def test_mistakes_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text(text)
    with pytest.raises(DataError) as refusal:
        prepare(raw, tmp_path / OUT)
    assert str(refusal.value).startswith(f"{raw}: ")
    assert words in str(refusal.value)
    assert not (tmp_path / OUT).exists()


def test_bytes_that_are_no_text_name_the_line(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_bytes(b"user,item,time\n1,2,3\n\xff,2,3\n")
    with pytest.raises(DataError, match="line 3: got bytes that are not UTF-8"):
        prepare(raw, tmp_path / OUT)


def test_a_column_that_is_not_there_is_told_apart_from_the_file(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text("user,item,time\n1,2,3\n")
    with pytest.raises(
        DataError, match=r"--item-column: got 'thing'; expected a column of .*which has user, item, time"
    ):
        prepare(raw, tmp_path / OUT, item_column="thing")


@pytest.mark.parametrize("name", ["raw.parquet", "raw.items.parquet"])
def test_the_source_is_never_overwritten(tmp_path: Path, name: str) -> None:
    raw = tmp_path / name
    pq.write_table(pa.table({"user": [1], "item": [1], "time": [1]}), raw)
    before = raw.read_bytes()
    with pytest.raises(DataError, match="--out"):
        prepare(raw, tmp_path / "raw.parquet")
    assert raw.read_bytes() == before


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=50),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_the_filter_is_one_pass_over_distinct_users_then_items(
    rows: list[tuple[int, int]], least_users: int, least_items: int
) -> None:
    owners = defaultdict(set)
    for user, item in rows:
        owners[item].add(user)
    first = [(user, item) for user, item in rows if len(owners[item]) >= least_users]
    taken = defaultdict(set)
    for user, item in first:
        taken[user].add(item)
    expected = [(u, i) in set(first) and len(taken[u]) >= least_items for u, i in rows]
    user, item = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    assert one_pass_filter(user, item, least_users, least_items).tolist() == expected


def test_the_filter_is_no_k_core(tmp_path: Path) -> None:
    # Item 1 has two users; user 2 is then dropped, and item 1 stays with one.
    raw = tmp_path / "raw.csv"
    raw.write_text("user,item,time\n1,1,1\n1,2,2\n3,2,3\n2,1,4\n3,4,5\n1,4,6\n")
    done = prepare(raw, tmp_path / OUT, min_item_users=2, min_user_items=2)
    assert rows_of(done.file) == [(1, 1, 1), (1, 2, 2), (1, 4, 6), (3, 2, 3), (3, 4, 5)]
    assert (done.before.interactions, done.after.users, done.after.items) == (6, 2, 3)


def test_the_commands_speak_on_the_right_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = tmp_path / "raw.csv", tmp_path / OUT
    rows = [f"{user},{item},{user + item}" for user in range(4) for item in range(5)]
    raw.write_text("\n".join(["userid,itemid,timestamp", *rows]))
    assert main(["prepare", str(raw), "--out", str(out), "--min-item-users", "2"]) == 0
    said = capsys.readouterr()
    printed = dict(line.split("  ", 1) for line in said.out.splitlines())
    assert printed["interactions after filter"].strip() == "20"
    assert "reading" in said.err
    assert main(["show", str(out)]) == 0
    said = capsys.readouterr()
    shown = {key: value.strip() for key, value in (line.split("  ", 1) for line in said.out.splitlines())}
    assert shown["digest"] == printed["digest"].strip()
    assert (shown["rows train"], shown["rows valid"], shown["rows test"], shown["rows in all"]) == (
        "12",
        "4",
        "4",
        "20",
    )
    assert said.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "nothing.parquet"],
        ["show", "amazon_beauty_5core", "--split", "temporal"],
        ["show", "amazon_beauty_5core", "--split", "replay"],
        ["show", "amazon_beauty_5core", "--quantile", "0.9"],
        ["show", "amazon_beauty_5core", "--split", "temporal", "--quantile", "1.5"],
        ["prepare", "nothing.csv", "--out", "x.parquet"],
        ["prepare", "nothing.csv", "--out", "pyproject.toml"],
        ["prepare", "nothing.csv", "--out", "x.parquet", "--min-user-items", "0"],
    ],
)
def test_a_users_mistake_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "; expected" in said.err or "cannot be read" in said.err
