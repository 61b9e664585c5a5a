"""The laws of ids, times and values: columns as a file writes them -> a table of what they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from seqrec.data.datasets.rows import Role, Rows
from seqrec.errors import DataError

Unit = Literal["seconds", "milliseconds", "microseconds"]
PER_SECOND: dict[Unit, int] = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000}

EARLIEST, LATEST = date(1990, 1, 1), date(2040, 1, 1)
"""No event of these data sets lies outside. A time in another unit, or a number that lost a digit, does."""

_WHOLE = r"^[+-]?\d{1,18}(\.0*)?$"
_NUMBER = r"^[+-]?\d{1,18}(\.\d*)?$"
_DATE = r"^\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}(\.\d{1,6})?"
_LOCAL, _ZONED = _DATE + "$", _DATE + r"(Z|[+-]\d{2}:?\d{2})$"


@dataclass(frozen=True)
class Laws:
    """What the columns of a data set mean."""

    user: Literal["integer", "text"]
    item: Literal["integer", "text"]
    time: Literal["number", "date"]
    """date: `YYYY-MM-DD HH:MM:SS` or T between, a fraction and a zone allowed; none counts as UTC."""
    unit: Unit
    """Of the canonical file; of a time that is a number, also of the raw one."""
    users_may_be_missing: bool = False
    """Rows without a user are left out and counted."""


@dataclass(frozen=True, eq=False)
class Events:
    """Rows that obey their laws."""

    table: pa.Table
    """user, item (int64 or text), time (int64), value (float64, where the data set has one)"""
    nameless: int
    """Rows without a user, left out."""


def events(rows: Rows, laws: Laws, earliest: date = EARLIEST, latest: date = LATEST) -> Events:
    """Raises DataError for the first value of a column that breaks its law."""
    columns = {role: _Column(rows, role) for role in rows.columns}
    nameless = 0
    if laws.users_may_be_missing:
        named = pc.invert(columns["user"].missing())
        nameless = len(named) - (pc.sum(named).as_py() or 0)
        if nameless:
            kept = pc.indices_nonzero(named)
            columns = {role: column.take(kept) for role, column in columns.items()}
    made = {
        "user": columns["user"].ids(laws.user),
        "item": columns["item"].ids(laws.item),
        "time": columns["time"].times(laws, earliest, latest),
    }
    if "value" in columns:
        made["value"] = columns["value"].numbers()
    return Events(pa.table(made), nameless)


class _Column:
    """One column, and how to complain about it."""

    def __init__(self, rows: Rows, role: Role) -> None:
        values = rows.columns[role]
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
            values = values.cast(pa.string())
        if pa.types.is_string(values.type):
            values = pc.utf8_trim_whitespace(values)
        self.values, self._rows, self._role = values, rows, role
        self._place: Callable[[int], int] = lambda row: row

    def take(self, kept: pa.Array) -> _Column:
        self.values = self.values.take(kept)
        self._place = lambda row: int(kept[row].as_py())
        return self

    def missing(self) -> pa.Array:
        missing = pc.is_null(self.values, nan_is_null=True)
        return pc.or_kleene(missing, pc.equal(self.values, "")) if self._is_text else missing

    @property
    def _is_text(self) -> bool:
        return bool(pa.types.is_string(self.values.type))

    def refuse(self, bad: pa.Array, law: str) -> None:
        """Raises DataError for the first row that is bad, if there is one."""
        if pc.any(bad).as_py():
            row, count = bad.index(True).as_py(), pc.sum(bad).as_py()
            more = f" ({count} such rows in this part of the file)" if count > 1 else ""
            raise self._error(row, self.values[row].as_py(), law + more)

    def _error(self, row: int, got: object, law: str) -> DataError:
        return self._rows.error(self._place(row), self._rows.names[self._role], got, law)

    def _refuse_missing(self) -> None:
        self.refuse(pc.fill_null(self.missing(), True), "a value in every row")

    def _refuse_type(self, law: str) -> DataError:
        return self._error(0, str(self.values.type), law)

    def ids(self, kind: Literal["integer", "text"]) -> pa.Array:
        """int64 or text. A typed file with text ids keeps them as text."""
        self._refuse_missing()
        if kind == "text" or (self._rows.typed and self._is_text):
            if pa.types.is_integer(self.values.type):
                return self.values.cast(pa.string())
            if not self._is_text:
                raise self._refuse_type("ids that are text or integers")
            return self.values
        law = "an integer from 0 to 2**63 - 1"
        values = self._whole(law)
        self.refuse(pc.less(values, 0), law)
        return values

    def times(self, laws: Laws, earliest: date, latest: date) -> pa.Array:
        self._refuse_missing()
        per_second = PER_SECOND[laws.unit]
        if laws.time == "number":
            values = self._whole(f"a whole number of {laws.unit} since 1970")
        else:
            instants = self._instants()
            values = pc.divide(instants, 1_000_000 // per_second)
            exact = pc.equal(pc.multiply(values, 1_000_000 // per_second), instants)
            self.refuse(pc.invert(exact), f"a time in whole {laws.unit}")
        first, last = (_seconds(day) * per_second for day in (earliest, latest))
        law = f"a time from {earliest} to {latest} in {laws.unit} since 1970"
        self.refuse(pc.or_(pc.less(values, first), pc.greater_equal(values, last)), law)
        return values

    def numbers(self) -> pa.Array:
        """float64, finite."""
        law = "a finite number"
        self._refuse_missing()
        if self._is_text:
            self.refuse(pc.invert(pc.match_substring_regex(self.values, _NUMBER)), law)
        elif not (pa.types.is_integer(self.values.type) or pa.types.is_floating(self.values.type)):
            raise self._refuse_type(law)
        values = self.values.cast(pa.float64())
        self.refuse(pc.invert(pc.is_finite(values)), law)
        return values

    def _whole(self, law: str) -> pa.Array:
        values = self.values
        if self._is_text:
            self.refuse(pc.invert(pc.match_substring_regex(values, _WHOLE)), law)
            return pc.replace_substring_regex(values, r"^\+|\.0*$", "").cast(pa.int64())
        if pa.types.is_floating(values.type):
            whole = pc.and_(pc.equal(pc.trunc(values), values), pc.less(pc.abs(values), 2.0**53))
            self.refuse(pc.invert(whole), law)
        elif pa.types.is_unsigned_integer(values.type):
            self.refuse(pc.greater(values.cast(pa.uint64()), pa.scalar(2**63 - 1, pa.uint64())), law)
        elif not pa.types.is_signed_integer(values.type):
            raise self._refuse_type(law)
        return values.cast(pa.int64())

    def _instants(self) -> pa.Array:
        """Microseconds since 1970."""
        values, law = self.values, "a date and time YYYY-MM-DD HH:MM:SS (all with a zone, or none)"
        if self._is_text:
            zoned = len(values) > 0 and values[0].as_py()[-1:] not in "0123456789"
            zoned = zoned or bool(len(values) and pc.match_substring_regex(values[:1], _ZONED)[0].as_py())
            self.refuse(pc.invert(pc.match_substring_regex(values, _ZONED if zoned else _LOCAL)), law)
            try:
                values = values.cast(pa.timestamp("us", "UTC" if zoned else None))
            except pa.ArrowInvalid:
                row = next(row for row, text in enumerate(values.to_pylist()) if not _is_date(text))
                raise self._error(row, values[row].as_py(), "a date of the calendar") from None
        elif not pa.types.is_timestamp(values.type):
            raise self._refuse_type(law)
        # Nanoseconds below a microsecond are cut off, as pandas and Spark do.
        return values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(pa.int64())


def _seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
