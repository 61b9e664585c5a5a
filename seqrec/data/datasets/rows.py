"""What passes between the stages: blocks of a raw file, and the rows that a format reads from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa

from seqrec.errors import DataError, message

Role = Literal["user", "item", "time", "value"]
"""`value`: the rating, or the kind of event, that a protocol may choose rows by."""


@dataclass(frozen=True)
class Block:
    """A piece of a text file that ends where a record ends."""

    source: str
    """The file, for messages."""
    text: bytes
    """Line ends are \\n, whatever the file has."""
    first_line: int
    """Line of the (unpacked) file that `text` begins with, from 1."""
    header: str | None = None
    """The file's first line, where the format has a header; `text` never contains it."""

    def lines(self) -> Iterator[tuple[int, str]]:
        """(line, text) of every line that is not blank. Bytes that are not UTF-8 become lone surrogates."""
        for number, line in enumerate(self.text.split(b"\n"), self.first_line):
            if line.strip():
                yield number, line.decode("utf-8", "surrogateescape")

    def line_of(self, row: int) -> int:
        """Line of the row-th line that is not blank, from 0; slow, for messages alone."""
        return next(number for place, (number, _) in enumerate(self.lines()) if place == row)

    def error(self, line: int, column: str, got: object, law: str) -> DataError:
        return DataError(message(f"{self.source}: line {line}, {column}", got, law))


@dataclass(frozen=True, eq=False)
class Rows:
    """Events in the order of the file, every column as the file writes it: text, or what a typed file holds."""

    columns: Mapping[Role, pa.Array]
    names: Mapping[Role, str]
    """What the file calls them."""
    error: Callable[[int, str, object, str], DataError]
    """(row from 0, column, value, law) -> an error that names file and line."""
    typed: bool = False
    """The file has types of its own (parquet): ids may be text or integers, as it says."""
    empty: int = 0
    """Records without any field, left out."""


class TextForm(Protocol):
    """A format whose files are read as blocks of lines."""

    @property
    def has_header(self) -> bool: ...

    @property
    def separator(self) -> bytes:
        """What ends a record: one line end, or two."""

    def parse(self, block: Block) -> Rows:
        """Raises DataError that names file, line, column, value and law of the first record that is broken."""


def is_text(value: str) -> bool:
    """False: holds bytes that are not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def rows_of_lines(block: Block, found: Mapping[Role, list[str | None]], places: list[int], empty: int = 0) -> Rows:
    """Rows whose values were read one line at a time; places: the line of every row. Names are to be set."""
    columns = {role: pa.array(values, pa.string()) for role, values in found.items()}
    return Rows(columns, {}, lambda row, column, got, law: block.error(places[row], column, got, law), empty=empty)
