"""`python -m seqrec.data prepare NAME --raw DIR` and `python -m seqrec.data list`: options and what is printed."""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

from seqrec.data.datasets.cells import EARLIEST, LATEST
from seqrec.data.datasets.pipeline import KINDS, Prepared, prepare
from seqrec.data.datasets.progress import Progress
from seqrec.data.datasets.protocols import PROTOCOLS
from seqrec.data.datasets.registry import DATA_SETS, named
from seqrec.errors import DataError, message

Lines = list[tuple[str, object]]

FLAGS = ("rating_above", "event", "min_item_users", "min_item_rows", "min_user_items", "min_user_rows")
"""Each overrides a field of the protocol's `Filters`."""
OFF = "off"
INTERRUPTED = "interrupted; the same command goes on where it stopped"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `prepare` that only a named data set has; --min-item-users and --min-user-items it shares."""
    group = parser.add_argument_group("a data set of the papers (python -m seqrec.data list)")
    group.add_argument("--raw", dest="raw_folder", metavar="PATH", type=Path, help="folder with the published files")
    names = "; ".join(f"{name}: {words}" for name, words in PROTOCOLS.items())
    group.add_argument("--protocol", metavar="NAME", help=f"{names}. Each data set has a default")
    group.add_argument("--rating-above", metavar="R", help=f"keep ratings strictly above R; {OFF}: all")
    group.add_argument("--event", metavar="E", help=f"keep events of kind E; {OFF}: all")
    group.add_argument("--min-item-rows", metavar="N", type=int, help="first drop items with fewer rows")
    group.add_argument("--min-user-rows", metavar="N", type=int, help="then drop users with fewer rows")
    group.add_argument("--earliest", metavar="DAY", help=f"refuse times before it (default {EARLIEST})")
    group.add_argument("--latest", metavar="DAY", help=f"refuse times from it on (default {LATEST})")


def is_named(arguments: argparse.Namespace) -> bool:
    """Whether `prepare` is asked for a data set and not for a file. Raises DataError for options of the other kind."""
    if arguments.raw_folder is not None:
        for role in ("user", "item", "time", "order"):
            if getattr(arguments, f"{role}_column") is not None:
                raise DataError(message(f"--{role}-column", getattr(arguments, f"{role}_column"), "no --raw beside it"))
        return True
    if str(arguments.raw) in DATA_SETS and not arguments.raw.exists():
        patterns = ", ".join(form.pattern for form in DATA_SETS[str(arguments.raw)].files)
        raise DataError(message("--raw", None, f"the folder that holds one of {patterns}"))
    for name in ("protocol", "rating_above", "event", "min_item_rows", "min_user_rows", "earliest", "latest"):
        if getattr(arguments, name) is not None:
            law = f"a data set of the papers with --raw ({', '.join(DATA_SETS)})"
            raise DataError(message(f"--{name.replace('_', '-')}", getattr(arguments, name), law))
    return False


def prepare_named(arguments: argparse.Namespace) -> Lines:
    """Prepares a data set; what to print."""
    data_set = named(str(arguments.raw))
    given = {name: getattr(arguments, name) for name in FLAGS if getattr(arguments, name) is not None}
    flags = {name: _number(name, value) if isinstance(value, str) else value for name, value in given.items()}
    filters = data_set.filters(arguments.protocol, flags)
    protocol = arguments.protocol or data_set.default
    progress = Progress()
    done = prepare(
        data_set,
        arguments.raw_folder,
        arguments.out or Path(f"{data_set.name}.parquet"),
        filters,
        protocol=protocol if not flags else f"{protocol}, overridden by flags",
        earliest=_day("earliest", arguments.earliest, EARLIEST),
        latest=_day("latest", arguments.latest, LATEST),
        progress=progress,
    )
    progress.say(f"original ids in {done.user_ids} and {done.item_ids}, provenance in {done.account}")
    if _differs(done, data_set.name):
        progress.say(f"{done.raw} is not of the published size: is it whole, and the same edition?")
    progress.say(f"terms: {data_set.terms}. Please cite: {data_set.citation}")
    return [
        ("file", done.file),
        ("data set", data_set.title),
        ("protocol", protocol if not flags else f"{protocol}, overridden by flags"),
        ("filters", filters),
        *_sizes(done, data_set.name),
        *((f"left out: {reason}", count) for reason, count in done.left_out.items() if count),
        ("duplicate rows kept", done.duplicates),
        ("simultaneous rows", done.simultaneous),
        ("raw sha256", done.raw_sha256),
        ("digest", done.digest),
    ]


def _sizes(done: Prepared, name: str) -> Lines:
    """Sizes at every moment, the published ones beside them where they are comparable."""
    lines: Lines = []
    for moment, sizes in done.sizes.items():
        stated = named(name).stated(done.filters, done.raw.name, moment)
        theirs = (stated.users, stated.items, stated.interactions) if stated else (None, None, None)
        for kind, ours, published in zip(KINDS, sizes, theirs, strict=True):
            beside = f"  (published: {published})" if published is not None else ""
            lines.append((f"{kind} {moment}", f"{ours}{beside}"))
    return lines


def _differs(done: Prepared, name: str) -> bool:
    """Whether the raw file has other sizes than the published one."""
    stated = named(name).stated(done.filters, done.raw.name, "read")
    theirs = (stated.users, stated.items, stated.interactions) if stated else (None, None, None)
    return any(size not in (None, ours) for size, ours in zip(theirs, done.sizes["read"], strict=True))


def list_all(name: str | None) -> Lines:
    """Every data set in a line, or everything about one."""
    if name is None:
        return [(each.name, f"{each.title}; {', '.join(each.protocols)}") for each in DATA_SETS.values()]
    data_set = named(name)
    lines: Lines = [("name", data_set.name), ("title", data_set.title), ("publisher", data_set.publisher)]
    lines += [("raw file", form.pattern) for form in data_set.files]
    lines += [(f"protocol {name}", filters) for name, filters in data_set.protocols.items()]
    lines += [("terms", data_set.terms), ("cite", data_set.citation)]
    return lines + ([("note", data_set.note)] if data_set.note else [])


def _number(name: str, text: str) -> float | None:
    if text == OFF:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise DataError(message(f"--{name.replace('_', '-')}", text, f"a number, or {OFF}"))
    return value


def _day(name: str, text: str | None, default: date) -> date:
    try:
        return date.fromisoformat(text) if text is not None else default
    except ValueError:
        raise DataError(message(f"--{name}", text, "a day as YYYY-MM-DD")) from None
