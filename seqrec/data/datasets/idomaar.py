"""Idomaar relations, the format of 30Music: a session a line, with the tracks played in it as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from seqrec.data.datasets.rows import Block, Role, Rows
from seqrec.errors import DataError, message

_NAMES: dict[Role, str] = {"user": "subjects.id", "item": "objects.id", "time": "timestamp + objects.playstart"}
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Sessions:
    """`type \\t id \\t timestamp \\t {properties} {"subjects": [...], "objects": [...]}`: an event for every track.

    Its time is the session's plus the track's `playstart`, both in seconds. Between the two JSON objects stands a
    blank (as published) or a tab.
    """

    has_header = False
    separator = b"\n"

    def parse(self, block: Block) -> Rows:
        users: list[int] = []
        items: list[int] = []
        times: list[int] = []
        places: list[int] = []
        for line, text in block.lines():
            fields = text.split("\t", 3)
            if len(fields) != 4:
                law = "4 (type, id, timestamp, JSON)"
                raise DataError(f"{block.source}: line {line}: got {len(fields)} values; expected {law}.")
            start = _whole(block, line, "timestamp", fields[2])
            linked = _linked(block, line, fields[3])
            user = self._user(block, line, linked.get("subjects"))
            tracks = linked.get("objects")
            if not isinstance(tracks, list):
                raise block.error(line, "objects", tracks, "a list of tracks")
            for track in tracks:
                if not isinstance(track, dict):
                    raise block.error(line, "objects", track, "an object with id and playstart")
                items.append(_whole(block, line, "objects.id", track.get("id")))
                times.append(start + _whole(block, line, "objects.playstart", track.get("playstart")))
            users += [user] * len(tracks)
            places += [line] * len(tracks)
        found: dict[Role, list[int]] = {"user": users, "item": items, "time": times}
        return Rows(
            {role: pa.array(values, pa.int64()) for role, values in found.items()},
            _NAMES,
            lambda row, column, got, law: block.error(places[row], column, got, law),
        )

    def _user(self, block: Block, line: int, subjects: Any) -> int:
        if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], dict):
            raise block.error(line, "subjects", subjects, "a list with one user")
        return _whole(block, line, "subjects.id", subjects[0].get("id"))


def _linked(block: Block, line: int, text: str) -> dict[str, Any]:
    """The second of two JSON objects."""
    try:
        _, end = _DECODER.raw_decode(text)
        linked = json.loads(text[end:])
    except ValueError:
        raise DataError(message(f"{block.source}: line {line}", text, "two JSON objects")) from None
    if not isinstance(linked, dict):
        raise block.error(line, "subjects and objects", linked, "a JSON object")
    return linked


def _whole(block: Block, line: int, name: str, value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise block.error(line, name, value, "a whole number >= 0")
    return value
