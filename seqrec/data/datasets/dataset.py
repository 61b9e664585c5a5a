"""What is known of a data set before its files are read."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from seqrec.data.datasets.cells import Laws
from seqrec.data.datasets.columnar import Columnar
from seqrec.data.datasets.protocols import Filters
from seqrec.data.datasets.rows import TextForm
from seqrec.errors import DataError, message

Moment = Literal["read", "chosen", "after filter"]
"""Of the raw file; of the rows chosen by rating or event; of what the filters leave."""


@dataclass(frozen=True)
class RawForm:
    """A file that a data set is published as."""

    pattern: str
    """Path inside the raw folder."""
    form: TextForm | Columnar
    member: str | None = None
    """How the name inside a zip archive ends."""
    md5: str | None = None
    """The file's checksum, where its publisher states one."""


@dataclass(frozen=True)
class Published:
    """Sizes that a paper or its code states. None: not stated."""

    filters: Filters
    """They hold under these: sizes after the filter under exactly these, sizes of chosen rows where rating and event
    are chosen alike, sizes as read under any."""
    moment: Moment
    users: int | None
    items: int | None
    interactions: int | None
    source: str
    raw: str = "*"
    """Pattern of the raw file's name that they hold for."""


@dataclass(frozen=True)
class DataSet:
    """One data set of the papers."""

    name: str
    title: str
    files: tuple[RawForm, ...]
    laws: Laws
    publisher: str
    """Who publishes the raw files, and under which title."""
    terms: str
    citation: str
    protocols: Mapping[str, Filters]
    """The first one is the default."""
    value: Literal["rating", "event"] | None = None
    """What the value column means."""
    published: tuple[Published, ...] = field(default=())
    newest_first: bool = False
    """A user's later events stand earlier in the file: ties in time are read from the end."""
    note: str = ""

    @property
    def default(self) -> str:
        return next(iter(self.protocols))

    def filters(self, protocol: str | None, flags: Mapping[str, float | int | None]) -> Filters:
        """Those of a protocol, overridden by flags. Raises DataError for what the data set does not have."""
        name = protocol or self.default
        if name not in self.protocols:
            law = f"a protocol of {self.name}: {', '.join(self.protocols)}"
            raise DataError(message("--protocol", name, law))
        filters = self.protocols[name].overridden(dict(flags))
        for key, kind in (("rating_above", "rating"), ("event", "event")):
            if getattr(filters, key) is not None and self.value != kind:
                law = f"a data set with a column for it, which {self.name} has not"
                raise DataError(message(f"--{key.replace('_', '-')}", getattr(filters, key), law))
        return filters

    def stated(self, filters: Filters, raw: str, moment: Moment) -> Published | None:
        """What was published of this moment, where it is comparable."""

        def what_counts(of: Filters) -> object:
            whole = {"read": None, "chosen": (of.rating_above, of.event), "after filter": of}
            return whole[moment]

        for stated in self.published:
            alike = what_counts(stated.filters) == what_counts(filters)
            if stated.moment == moment and alike and fnmatch.fnmatch(raw, stated.raw):
                return stated
        return None
