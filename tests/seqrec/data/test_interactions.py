"""Canonical files: what is read, what is refused and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import seqrec.data
from seqrec.config import Data
from seqrec.data import interactions
from seqrec.errors import DataError


def write(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_rows_are_sorted_by_user_then_time_then_place_in_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", item_id=[4, 2, 3, 1, 5], user_id=[9, 2, 9, 9, 2], timestamp=[5, 8, 1, 5, -3])
    table = interactions.read(file)
    assert table.user_id.tolist() == [2, 2, 9, 9, 9]
    assert table.item_id.tolist() == [5, 2, 3, 4, 1]
    assert table.time.tolist() == [-3, 8, 1, 5, 5]
    assert (table.name, table.has_timestamps) == ("x", True)


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    rows = {"user_id": [1, 1, 2], "item_id": [3, 4, 5], "order": [0, 1, 0]}
    digest = interactions.read(write(tmp_path / "a.parquet", **rows)).digest
    shuffled = {name: [values[i] for i in (2, 0, 1)] for name, values in rows.items()}
    narrow = {name: pa.array(values, pa.uint8()) for name, values in shuffled.items()}
    assert interactions.read(write(tmp_path / "b.parquet", **narrow, rating=[1.0, 2.0, 3.0])).digest == digest
    others = [
        {**rows, "user_id": [1, 1, 3]},
        {**rows, "item_id": [3, 4, 6]},
        {**rows, "order": [0, 2, 0]},
        {"user_id": rows["user_id"], "item_id": rows["item_id"], "timestamp": rows["order"]},
    ]
    digests = {interactions.read(write(tmp_path / "c.parquet", **other)).digest for other in others}
    assert len(digests | {digest}) == 5
    assert len(digest) == 64


GOOD: dict[str, Any] = {"user_id": [1, 1, 2], "item_id": [3, 4, 5], "timestamp": [0, 1, 0]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user_id": [1, None, None]}, "user_id, row 2: got nothing; expected an integer in every row (2 such rows)."),
        ({"timestamp": [0, 1, None]}, "timestamp, row 3: got nothing; expected an integer in every row."),
        ({"item_id": [3, 4, -5]}, "item_id, row 3: got -5; expected an integer >= 0."),
        ({"item_id": ["a", "b", "c"]}, "item_id: got 'string'; expected a column of integers."),
        ({"user_id": [1.0, 1.5, 2.0]}, "user_id: got 'double'; expected a column of integers."),
        ({"user_id": pa.array([1, 2**63, 2], pa.uint64())}, f"user_id, row 2: got {2**63}; expected an integer below"),
        ({"order": [0, 1, 0]}, "expected user_id, item_id, and one of timestamp and order, each once."),
        ({"user_id": [], "item_id": [], "timestamp": []}, "rows: got 0; expected at least one interaction."),
    ],
)  # fmt: skip
def test_a_file_that_is_not_canonical_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    columns = {
        name: pa.array(values, pa.int64()) if values == [] else values for name, values in (GOOD | change).items()
    }
    file = write(tmp_path / "bad.parquet", **columns)
    with pytest.raises(DataError) as refusal:
        interactions.read(file)
    assert str(refusal.value).startswith(f"{file}: ")
    assert words in str(refusal.value)


def test_a_column_is_read_in_pieces_and_its_rows_counted_through(tmp_path: Path) -> None:
    """More rows than one batch of the reader holds."""
    n = 150_001
    item = np.random.default_rng(0).integers(0, 2**40, n)
    good = {"user_id": np.arange(n), "item_id": item, "timestamp": np.arange(n, dtype=np.uint32).astype(np.uint16)}
    table = interactions.read(write(tmp_path / "long.parquet", **good))
    assert np.array_equal(table.item_id, item)
    assert np.array_equal(table.time, np.arange(n) % 2**16)
    far = [None if i in (140_000, 150_000) else i for i in range(n)]
    large = np.full(n, 5, dtype=np.uint64)
    large[120_000:] = 2**64 - 1
    for name, column, words in (
        ("user_id", far, "user_id, row 140001: got nothing; expected an integer in every row (2 such rows)."),
        ("timestamp", large, f"timestamp, row 120001: got {2**64 - 1}; expected an integer below 2**63 (30001 such"),
        (
            "item_id",
            np.where(np.arange(n) > 149_990, -7, item),
            "item_id, row 149992: got -7; expected an integer >= 0",
        ),
    ):
        with pytest.raises(DataError) as refusal:
            interactions.read(write(tmp_path / "long.parquet", **good | {name: column}))
        assert words in str(refusal.value)


def test_reading_takes_little_more_than_the_result(tmp_path: Path) -> None:
    """Peak of NumPy's and Arrow's memory together, for sorted rows; the result is three columns of 8 bytes."""
    n = 2_000_000
    columns = {"user_id": np.arange(n), "item_id": np.arange(n) % 999, "timestamp": np.zeros(n, dtype=np.int64)}
    file = write(tmp_path / "long.parquet", **columns)
    code = (
        "import sys, tracemalloc, pyarrow as pa; from seqrec.data import interactions; tracemalloc.start();"
        "interactions.read(sys.argv[1]);"
        "print(tracemalloc.get_traced_memory()[1], pa.default_memory_pool().max_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert sum(map(int, done.stdout.split())) < 1.6 * 24 * n, done.stdout


def test_columns_are_named_when_some_are_missing(tmp_path: Path) -> None:
    file = write(tmp_path / "bad.parquet", userid=[1], itemid=[2], timestamp=[3])
    with pytest.raises(
        DataError, match=r"columns: got 'userid, itemid, timestamp'.*hint: python -m seqrec\.data prepare"
    ):
        interactions.read(file)


def test_a_repeated_place_in_an_order_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "bad.parquet", user_id=[4, 3, 4, 4], item_id=[1, 2, 3, 4], order=[7, 7, 8, 7])
    with pytest.raises(DataError, match="order, rows 1 and 4: got 7 twice for user 4; expected a place of its own"):
        interactions.read(file)


def test_simultaneous_rows_of_a_timestamp_are_no_mistake(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", user_id=[4, 4], item_id=[1, 1], timestamp=[7, 7])
    assert len(interactions.read(file).user_id) == 2


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ratings.csv"
    file.write_text("user_id,item_id,timestamp\n1,2,3\n")
    with pytest.raises(DataError, match=r"ratings\.csv: is not a parquet file.*hint: python -m seqrec\.data prepare"):
        interactions.read(str(file))


def test_a_file_that_is_broken_inside_is_refused(tmp_path: Path) -> None:
    """Its footer is whole, so that the mistake shows while a column is read."""
    file = tmp_path / "broken.parquet"
    write(file, user_id=np.arange(9_000), item_id=np.arange(9_000) * 7919 % 9_001, timestamp=np.arange(9_000))
    content = bytearray(file.read_bytes())
    content[100:9_000] = bytes(len(content[100:9_000]))
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.parquet: is not a parquet file that can be read"):
        interactions.read(str(file))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"data\.path: got 'amazon_beauty'.*did you mean amazon_beauty_5core\?"):
        interactions.read("amazon_beauty")


def test_beauty_is_the_published_set() -> None:
    statistics = seqrec.data.statistics(Data(path="amazon_beauty_5core"))
    assert (statistics.n_users, statistics.n_items, statistics.n_interactions) == (22_363, 12_101, 198_502)
    assert statistics.interactions_per_user == 9
    assert dict(statistics.rows) == {"train": 198_502 - 2 * 22_363, "valid": 22_363, "test": 22_363}
    assert statistics.n_train_users == 22_363
    assert statistics.digest == "cf7d47a0095a3eff56d83fc628400d416c64f70146555f7af8ab7a13a09fddd2"


@pytest.mark.parametrize("name", interactions.bundled_names())
def test_a_bundled_set_has_its_provenance(name: str) -> None:
    about = json.loads((interactions.BUNDLED / f"{name}.json").read_text())
    assert about["name"] == name
    assert about["provenance"]
    assert about["licence"]
    assert about["citations"]
    statistics = seqrec.data.statistics(Data(path=name))
    described = about["statistics"]
    found = {"users": statistics.n_users, "items": statistics.n_items, "interactions": statistics.n_interactions}
    assert {key: described[key] for key in found} == found


def test_reading_a_data_set_loads_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, seqrec.data; from seqrec.config import Data;"
        "seqrec.data.statistics(Data(path='amazon_beauty_5core'));"
        "print([name for name in ('torch', 'pandas', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
