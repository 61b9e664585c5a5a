"""python -m seqrec.data prepare | list | synthesize | show: data on stdout, messages on stderr, exit code 2 for a
user's mistake."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import seqrec.data
from seqrec.config import PROTOCOLS, Data, parse_section
from seqrec.data import synthetic
from seqrec.data.datasets import command as datasets
from seqrec.data.prepare import Counts, prepare
from seqrec.errors import ConfigError, DataError, UserError, message


def main(argv: list[str] | None = None) -> int:
    """Exit code of the command line."""
    arguments = _parser().parse_args(argv)
    try:
        lines = COMMANDS[arguments.command](arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(datasets.INTERRUPTED if getattr(arguments, "raw_folder", None) else "interrupted", file=sys.stderr)
        return 130
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    return 0


def _prepare(arguments: argparse.Namespace) -> list[tuple[str, object]]:
    if datasets.is_named(arguments):
        return datasets.prepare_named(arguments)
    if arguments.out is None:
        raise DataError(message("--out", None, "the file to write"))
    print(f"reading {arguments.raw}", file=sys.stderr)
    done = prepare(
        arguments.raw,
        arguments.out,
        user_column=arguments.user_column,
        item_column=arguments.item_column,
        time_column=arguments.time_column,
        order_column=arguments.order_column,
        min_item_users=1 if arguments.min_item_users is None else arguments.min_item_users,
        min_user_items=1 if arguments.min_user_items is None else arguments.min_user_items,
    )
    print(f"original ids in {done.user_ids} and {done.item_ids}", file=sys.stderr)

    def sizes(moment: str, counts: Counts) -> list[tuple[str, object]]:
        return [(f"{kind} {moment}", getattr(counts, kind)) for kind in ("users", "items", "interactions")]

    return [
        ("file", done.file),
        *sizes("before filter", done.before),
        *sizes("after filter", done.after),
        ("digest", done.digest),
    ]


def _show(arguments: argparse.Namespace) -> list[tuple[str, object]]:
    keys = ("split", "quantile", "valid_users", "split_seed", "test_users")
    with _told_as_options():
        data = parse_section(Data, {"path": arguments.data} | {key: getattr(arguments, key) for key in keys}, "data")
    statistics = seqrec.data.statistics(data)
    return [
        ("name", statistics.name),
        ("digest", statistics.digest),
        ("split", data.split),
        *data.protocol().items(),
        *statistics.scope().items(),
        ("longest training history", statistics.longest_train_history),
        *((f"rows {fate}", rows) for fate, rows in statistics.rows),
        ("rows in all", sum(rows for _, rows in statistics.rows)),
    ]


def _synthesize(arguments: argparse.Namespace) -> list[tuple[str, object]]:
    keys = {key: value for key, value in vars(arguments).items() if value is not None}
    names = [field.name for field in dataclasses.fields(synthetic.Recipe)]
    with _told_as_options():
        if arguments.mean_length is not None:
            keys["length_mu"] = synthetic.length_mu(arguments.mean_length, synthetic.Recipe.length_sigma)
        recipe = synthetic.Recipe(**{name: keys[name] for name in names if name in keys})

    def tell(users: int, rows: int) -> None:
        print(f"{users:,} of {recipe.n_users:,} users, {rows:,} interactions", file=sys.stderr)

    done = synthetic.write(recipe, arguments.out, on_block=tell)
    return [
        ("file", done.file),
        ("users", done.users),
        ("items", recipe.n_items),
        ("interactions", done.interactions),
        ("longest history", done.longest),
    ]


@contextmanager
def _told_as_options() -> Iterator[None]:
    """A mistake in a key, told by the option that set it."""
    try:
        yield
    except ConfigError as error:
        key, _, rest = str(error).removeprefix("data.").partition(":")
        raise ConfigError(f"--{key.removeprefix('n_').replace('_', '-')}:{rest}") from None


def _list(arguments: argparse.Namespace) -> list[tuple[str, object]]:
    return datasets.list_all(arguments.name)


COMMANDS = {"prepare": _prepare, "list": _list, "synthesize": _synthesize, "show": _show}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m seqrec.data", description="Prepare, make, look at interactions.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_ = commands.add_parser(
        "prepare", help="turn a data set's published files, or a table, into a canonical one"
    )
    prepare_.add_argument(
        "raw", metavar="NAME|FILE", type=Path, help="a data set of the papers, or a CSV, TSV (.gz too) or parquet file"
    )
    prepare_.add_argument("--out", metavar="FILE.parquet", type=Path, help="of a data set by default NAME.parquet")
    for role in ("user", "item", "time", "order"):
        prepare_.add_argument(f"--{role}-column", metavar="NAME", help="default: recognised by its name")
    prepare_.add_argument(
        "--min-item-users", metavar="N", type=int, help="first drop items with fewer users (papers: 5)"
    )
    prepare_.add_argument(
        "--min-user-items", metavar="N", type=int, help="then drop users with fewer items (papers: 20)"
    )
    datasets.add_options(prepare_)
    list_ = commands.add_parser("list", help="print the data sets of the papers, or all about one")
    list_.add_argument("name", metavar="NAME", nargs="?")
    synthesize = commands.add_parser("synthesize", help="make interactions with a popularity tail and an order")
    synthesize.add_argument("--users", dest="n_users", metavar="N", type=int, required=True)
    synthesize.add_argument("--items", dest="n_items", metavar="V", type=int, required=True)
    synthesize.add_argument("--out", metavar="FILE.parquet", type=Path, required=True)
    synthesize.add_argument("--successors", dest="n_successors", metavar="N", type=int, help="of an item (default 3)")
    synthesize.add_argument("--tastes", dest="n_tastes", metavar="N", type=int, help="classes of items (default 8)")
    for option, kind, words in (
        ("--seed", int, "default 0"),
        ("--mean-length", float, "of a history, before it is clipped; lognormal (default 83)"),
        ("--min-length", int, "default 20"),
        ("--max-length", int, "default 1500"),
        ("--popularity", float, "an item is drawn with rank**-popularity (default 0.8)"),
        ("--follow", float, "share of items that are successors of the one before (default 0.5)"),
        ("--taste", float, "share of the other items that are of the user's taste (default 0.3)"),
    ):
        synthesize.add_argument(option, type=kind, help=words)
    synthesize.add_argument("--every-item", action="store_true", help="each item at least once")
    show = commands.add_parser("show", help="print the statistics and the fate of every row")
    show.add_argument("data", metavar="FILE_OR_NAME", help="canonical parquet file or bundled data set")
    show.add_argument("--split", choices=tuple(PROTOCOLS), default="leave_one_out")
    show.add_argument("--quantile", type=float, help="where time is cut (default: temporal 0.95, replay 0.9)")
    show.add_argument("--valid-users", metavar="SHARE", type=float, help="replay: set aside (default 0.05)")
    show.add_argument("--split-seed", metavar="N", type=int, help="replay: draws those users (default 42)")
    show.add_argument("--test-users", choices=("trained", "with_history"), help="replay: default trained, as published")
    return parser


if __name__ == "__main__":
    sys.exit(main())
