"""A preparation in one call, and what it wrote in the ids of the raw file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from seqrec.data import interactions
from seqrec.data.datasets.pipeline import Limits, Prepared, prepare
from seqrec.data.datasets.protocols import Filters
from seqrec.data.datasets.registry import named

Row = tuple[Any, Any, int]


@dataclass(frozen=True)
class Outcome:
    rows: list[Row]
    """(original user, original item, time), in the file's order"""
    done: Prepared


def rows_of(file: Path) -> list[Row]:
    columns = pq.read_table(file).to_pydict()
    users = pq.read_table(file.with_suffix(".users.parquet")).to_pydict()
    items = pq.read_table(file.with_suffix(".items.parquet")).to_pydict()
    assert users["user_id"] == list(range(len(users["user_id"])))
    assert items["item_id"] == list(range(len(items["item_id"])))
    assert users["original"] == sorted(users["original"])
    assert items["original"] == sorted(items["original"])
    return [
        (users["original"][user], items["original"][item], time)
        for user, item, time in zip(columns["user_id"], columns["item_id"], columns["timestamp"], strict=True)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Outcome]:
    """run(name, file name, content, protocol, **limits and filters): the content is written as the raw file."""

    def prepared(
        name: str, file: str, content: bytes, protocol: str = "none", limits: Limits | None = None, **flags: Any
    ) -> Outcome:
        raw = tmp_path / "raw" / file
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.write_bytes(content)
        data_set = named(name)
        filters: Filters = data_set.filters(protocol, flags)
        done = prepare(data_set, tmp_path / "raw", tmp_path / "out.parquet", filters, limits=limits)
        assert done.digest == interactions.read(str(done.file)).digest
        assert not done.file.with_name(f".{done.file.name}.work").exists(), "nothing is left behind"
        return Outcome(rows_of(done.file), done)

    return prepared
