"""python -m seqrec.data prepare | list | show: data on stdout, messages on stderr, exit code 2 for a user's mistake."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import seqrec.data
from seqrec.config import Data
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
    if not 0 < arguments.quantile < 1:
        raise ConfigError(message("--quantile", arguments.quantile, "a number between 0 and 1"))
    data = Data(path=arguments.data, split=arguments.split, quantile=arguments.quantile)
    statistics = seqrec.data.statistics(data)
    return [
        ("name", statistics.name),
        ("digest", statistics.digest),
        *statistics.scope().items(),
        ("longest training history", statistics.longest_train_history),
        *((f"rows {fate}", rows) for fate, rows in statistics.rows),
        ("rows in all", sum(rows for _, rows in statistics.rows)),
    ]


def _list(arguments: argparse.Namespace) -> list[tuple[str, object]]:
    return datasets.list_all(arguments.name)


COMMANDS = {"prepare": _prepare, "list": _list, "show": _show}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m seqrec.data", description="Prepare and look at interactions.")
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
    show = commands.add_parser("show", help="print the statistics and the fate of every row")
    show.add_argument("data", metavar="FILE_OR_NAME", help="canonical parquet file or bundled data set")
    show.add_argument("--split", choices=("leave_one_out", "temporal"), default="leave_one_out")
    show.add_argument("--quantile", type=float, default=0.95, help="where the temporal split cuts (default 0.95)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
