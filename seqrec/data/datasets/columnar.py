"""Parquet exports: Zvuk, Megamarket. Read in batches of rows, never whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seqrec.data.datasets.rows import Role, Rows
from seqrec.errors import DataError, message

BATCH_ROWS = 1_000_000


@dataclass(frozen=True)
class Columnar:
    """One event a row."""

    roles: Mapping[Role, tuple[str, ...]]
    """The columns' names; more than one: whichever the file has."""

    def batches(self, path: Path, size: int = BATCH_ROWS) -> Iterator[tuple[int, Rows]]:
        """(rows of the file before the batch, its rows). Raises DataError for a file that is no whole parquet."""
        try:
            with pq.ParquetFile(path) as file:
                names = self._names(path, file.schema_arrow.names)
                begun = 0
                for batch in file.iter_batches(size, columns=list(names.values())):
                    yield begun, self._rows(path, begun, batch, names)
                    begun += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise DataError(f"{path}: cannot be read ({reason}). hint: is the download complete?") from None

    def rows(self, path: Path) -> int:
        """Rows of a file that `batches` could open."""
        return int(pq.read_metadata(path).num_rows)

    def _names(self, path: Path, columns: list[str]) -> dict[Role, str]:
        names: dict[Role, str] = {}
        for role, known in self.roles.items():
            found = [name for name in columns if name in known]
            if len(found) != 1:
                law = f"one column named {' or '.join(known)}"
                raise DataError(message(f"{path}: columns", ", ".join(columns), law))
            names[role] = found[0]
        return names

    def _rows(self, path: Path, start: int, batch: pa.RecordBatch, names: Mapping[Role, str]) -> Rows:
        def error(row: int, column: str, got: object, law: str) -> DataError:
            return DataError(message(f"{path}: row {start + row + 1}, {column}", got, law))

        return Rows({role: batch.column(name) for role, name in names.items()}, names, error, typed=True)
