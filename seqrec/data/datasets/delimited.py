"""Columns between delimiters, with a header or without: MovieLens, Amazon ratings, Gowalla, Behance, CSV exports."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.csv

from seqrec.data.datasets.rows import Block, Role, Rows, is_text, rows_of_lines
from seqrec.errors import DataError, message


@dataclass(frozen=True)
class Delimited:
    """One event a line."""

    roles: Mapping[Role, tuple[str, ...]]
    """The columns' names; more than one: whichever the header has."""
    delimiter: str = ","
    """A blank stands for any run of blanks and tabs."""
    columns: tuple[str, ...] = ()
    """All columns in order, of a file without a header."""
    quoted: bool = False

    separator = b"\n"

    @property
    def has_header(self) -> bool:
        return not self.columns

    def parse(self, block: Block) -> Rows:
        columns = self._columns(block)
        names = {role: _the_one(block, columns, known) for role, known in self.roles.items()}
        text = block.text
        if self.delimiter == " ":
            text = re.sub(rb"(?m)^ +| +$", b"", re.sub(rb"[ \t]+", b" ", text))
        try:
            return self._fast(replace(block, text=text), columns, names)
        except (pa.ArrowException, UnicodeError):
            return replace(self._slow(replace(block, text=text), columns, names), names=names)

    def _fast(self, block: Block, columns: list[str], names: Mapping[Role, str]) -> Rows:
        table = pyarrow.csv.read_csv(
            io.BytesIO(block.text),
            read_options=pyarrow.csv.ReadOptions(column_names=columns, block_size=max(len(block.text), 1)),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self.delimiter, quote_char='"' if self.quoted else False, double_quote=self.quoted
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names.values(), pa.string()), include_columns=list(names.values())
            ),
        )
        # A quote that is never closed swallows lines; the slow way then finds where.
        if table.num_rows != sum(1 for line in block.text.split(b"\n") if line.strip()):
            raise pa.ArrowInvalid("a row for every line")

        def error(row: int, column: str, got: object, law: str) -> DataError:
            return block.error(block.line_of(row), column, got, law)

        return Rows({role: table[name].combine_chunks() for role, name in names.items()}, names, error)

    def _slow(self, block: Block, columns: list[str], names: Mapping[Role, str]) -> Rows:
        """The obvious twin of `_fast`, which also says where a line is broken."""
        index = {role: columns.index(name) for role, name in names.items()}
        found: dict[Role, list[str | None]] = {role: [] for role in names}
        places = []
        for line, text in block.lines():
            try:
                values = self._split(text)
            except csv.Error as problem:
                raise DataError(message(f"{block.source}: line {line}", text, f"closed quotes ({problem})")) from None
            if len(values) != len(columns):
                law = f"{len(columns)} ({', '.join(columns)})"
                raise DataError(f"{block.source}: line {line}: got {len(values)} values; expected {law}.")
            for role, place in index.items():
                if not is_text(values[place]):
                    raise block.error(line, names[role], values[place], "text in UTF-8")
                found[role].append(values[place])
            places.append(line)
        return rows_of_lines(block, found, places)

    def _split(self, line: str) -> list[str]:
        if not self.quoted:
            return line.split(self.delimiter)
        return next(csv.reader([line], delimiter=self.delimiter, strict=True))

    def _columns(self, block: Block) -> list[str]:
        if self.columns:
            return list(self.columns)
        try:
            return [name.strip() for name in self._split(block.header or "")]
        except csv.Error as problem:
            law = f"closed quotes ({problem})"
            raise DataError(message(f"{block.source}: line 1", block.header, law)) from None


def _the_one(block: Block, columns: list[str], known: tuple[str, ...]) -> str:
    found = [name for name in columns if name in known]
    if len(found) != 1:
        law = f"one column named {' or '.join(known)}"
        raise DataError(message(f"{block.source}: line 1, columns", ", ".join(columns), law))
    return found[0]
