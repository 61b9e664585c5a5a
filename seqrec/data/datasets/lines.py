"""One record a line, as JSON or as a Python dictionary: Amazon reviews, Yelp, BeerAdvocate."""

from __future__ import annotations

import ast
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.json

from seqrec.data.datasets.rows import Block, Role, Rows, is_text, rows_of_lines
from seqrec.errors import DataError, message

_TYPES = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64()}


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line; keys that are not asked for are ignored."""

    names: Mapping[Role, str]
    types: Mapping[Role, str]
    """text, integer or number: what the publisher writes. Anything else is read the slow way."""

    has_header = False
    separator = b"\n"

    def parse(self, block: Block) -> Rows:
        try:
            return self._fast(block)
        except pa.ArrowException:
            return replace(_slow(block, self.names, _json), names=self.names)

    def _fast(self, block: Block) -> Rows:
        schema = pa.schema([(name, _TYPES[self.types[role]]) for role, name in self.names.items()])
        table = pyarrow.json.read_json(
            io.BytesIO(block.text),
            read_options=pyarrow.json.ReadOptions(block_size=max(len(block.text), 1)),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)  # text that is not UTF-8
        if table.num_rows != sum(1 for line in block.text.split(b"\n") if line.strip()):
            raise pa.ArrowInvalid("a row for every line")
        columns = {role: table[name].combine_chunks() for role, name in self.names.items()}
        if any(column.null_count for column in columns.values()):
            raise pa.ArrowInvalid("a value for every key")

        def error(row: int, column: str, got: object, law: str) -> DataError:
            return block.error(block.line_of(row), column, got, law)

        return Rows(columns, self.names, error)


@dataclass(frozen=True)
class DictLines:
    """One Python dictionary (or JSON object) a line. Empty ones, which the published file has, are left out."""

    names: Mapping[Role, str]

    has_header = False
    separator = b"\n"

    def parse(self, block: Block) -> Rows:
        with warnings.catch_warnings():
            # Reviews hold "\\d" and the like: a DeprecationWarning before Python 3.12, then a SyntaxWarning.
            warnings.simplefilter("ignore")
            return replace(_slow(block, self.names, _dictionary), names=self.names)


def _json(text: str) -> Any:
    return json.loads(text)


def _dictionary(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text.strip())


def _slow(block: Block, names: Mapping[Role, str], read: Any) -> Rows:
    found: dict[Role, list[str | None]] = {role: [] for role in names}
    places, empty = [], 0
    kind = "a JSON object" if read is _json else "a Python dictionary or a JSON object"
    for line, text in block.lines():
        try:
            record = read(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise DataError(message(f"{block.source}: line {line}", text, f"{kind} in every line")) from None
        if not isinstance(record, dict):
            raise DataError(message(f"{block.source}: line {line}", text, kind))
        if not record and read is _dictionary:
            empty += 1
            continue
        for role, name in names.items():
            found[role].append(scalar(block, line, name, record.get(name)))
        places.append(line)
    return rows_of_lines(block, found, places, empty)


def scalar(block: Block, line: int, name: str, value: object) -> str | None:
    """A value of a record as text. Raises DataError for a list, an object, true or false, or text that is not UTF-8."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise block.error(line, name, value, "a number or text")
    text = value if isinstance(value, str) else repr(value)
    if not is_text(text):
        raise block.error(line, name, text, "text in UTF-8")
    return text
