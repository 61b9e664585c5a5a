"""What is kept of a raw data set: the filters that the papers used, by name, each of which a flag can override."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from seqrec.errors import DataError, message


@dataclass(frozen=True)
class Filters:
    """Applied in the order of the fields, each once: no k-core."""

    rating_above: float | None = None
    """Keep ratings strictly above."""
    event: float | None = None
    """Keep events of this kind."""
    min_item_users: int = 1
    """Then keep items of at least so many distinct users,"""
    min_item_rows: int = 1
    """and rows;"""
    min_user_items: int = 1
    """then users of at least so many distinct items out of those,"""
    min_user_rows: int = 1
    """and rows."""

    def check(self) -> Filters:
        """Itself. Raises DataError for a least number below 1."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("min_") and value < 1:
                raise DataError(message(f"--{field.name.replace('_', '-')}", value, "an integer >= 1"))
        return self

    def overridden(self, flags: dict[str, float | int | None]) -> Filters:
        """With the flags that were given; the key is the field's name."""
        return replace(self, **flags).check()  # type: ignore[arg-type]

    @property
    def of_rows(self) -> Filters:
        """Those that look at a row by itself, while the file is read."""
        return Filters(self.rating_above, self.event)

    @property
    def by_value(self) -> bool:
        return self.rating_above is not None or self.event is not None

    def __str__(self) -> str:
        words = []
        if self.rating_above is not None:
            words.append(f"rating > {self.rating_above:g}")
        if self.event is not None:
            words.append(f"event == {self.event:g}")
        for owner, counted in (("item", "users"), ("item", "rows"), ("user", "items"), ("user", "rows")):
            least = getattr(self, f"min_{owner}_{counted}")
            if least > 1:
                words.append(f"{owner}s of >= {least} {counted}")
        return ", then ".join(words) or "nothing is left out"


RECE = Filters(min_item_users=5, min_user_items=20)
"""RECE (arXiv 2408.02354) and SCE (arXiv 2409.18721): distinct users and items, whatever the rating."""

REPLAY = Filters(min_item_rows=5, min_user_rows=3)
"""CCE- (arXiv 2509.09682), in RePlay: rows, repeated ones too; ratings above 3 or purchases, where there are such."""

PROTOCOLS = {
    "rece": "the RECE and SCE papers: items of >= 5 users, then users of >= 20 items",
    "replay": "the CCE- paper: ratings above 3 or purchases, items of >= 5 rows, then users of >= 3 rows",
    "none": "every row of the raw file",
}
