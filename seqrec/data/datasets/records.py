"""Records of `key: value` lines with a blank line between them: the text form of BeerAdvocate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from seqrec.data.datasets.rows import Block, Role, Rows, is_text, rows_of_lines


@dataclass(frozen=True)
class Records:
    """Lines that begin with no wanted key are ignored, and may hold anything."""

    names: Mapping[Role, str]

    has_header = False
    separator = b"\n\n"

    def parse(self, block: Block) -> Rows:
        found: dict[Role, list[str | None]] = {role: [] for role in self.names}
        places: list[int] = []
        record: dict[Role, str] = {}
        begun = 0

        def close() -> None:
            if begun:
                for role in self.names:
                    found[role].append(record.get(role))
                places.append(begun)

        for line, raw in enumerate(block.text.split(b"\n"), block.first_line):
            if not raw.strip():
                close()
                record, begun = {}, 0
                continue
            begun = begun or line
            for role, name in self.names.items():
                key = f"{name}:".encode()
                if raw.startswith(key):
                    value = raw.removeprefix(key).decode("utf-8", "surrogateescape").strip()
                    if role in record:
                        raise block.error(line, name, value, "each key once in a record")
                    if not is_text(value):
                        raise block.error(line, name, value, "text in UTF-8")
                    record[role] = value
        close()
        return replace(rows_of_lines(block, found, places), names=self.names)
