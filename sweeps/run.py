"""The main job: `python -m sweeps.run SPACE` plans a search space and runs what is left of it.

Exit codes: 0 every cell has a result (done, stopped, diverged, out of memory) or the budget is spent; 1 some cells
ended in an error, or the launch could not go on; 2 a mistake in the search space, the data or the command, told in one
message before Ray starts; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from seqrec import data
from seqrec.data.tables import Statistics
from seqrec.errors import SeqrecError, UserError, message
from sweeps import plan as plans, space, spec
from sweeps.ledger import fold, read
from sweeps.options import Options
from sweeps.spec import SweepSpec

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
LEDGER = "ledger.jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except SeqrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a printed plan, `head` say, has left; a flush at exit would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    sweep = spec.load(arguments.space, arguments.set, arguments.data)
    plan = space.plan(sweep, _statistics(sweep))
    refusal = plans.refusal(sweep, plan)
    if arguments.plan:
        ended = _ended(options.storage / sweep.name)
        limit = options.limit_trials if options.limit_trials is not None else sweep.budget.trials
        if arguments.json:
            print(json.dumps(plans.to_json(sweep, plan, ended, limit), indent=1))
        else:
            print(plans.text(sweep, plan, ended, limit), end="")
        sys.stdout.flush()
    if refusal is not None:
        raise UserError(refusal)
    if not plan.cells:
        raise UserError(f"{sweep.source}: got no cell; expected at least one that the constraints leave.")
    if arguments.plan:
        return OK
    from sweeps import execute  # Ray and torch load here and not before

    return execute.run(sweep, plan, options)


def _statistics(sweep: SweepSpec) -> Statistics:
    try:
        return data.statistics(sweep.data)
    except UserError as error:
        # A law that a key of the search space breaks names its file; one about the data's file names that.
        raise UserError(f"{sweep.source}: {error}" if str(error).startswith("data.") else str(error)) from None


def _ended(directory: Path) -> dict[str, str]:
    """Outcome by cell key of what earlier launches finished."""
    path = directory / LEDGER
    if not path.exists():
        return {}
    state = fold(event for event, _ in read(path))
    return {key: cell.outcome.value for key, cell in state.cells.items() if cell.outcome is not None}


def _options(arguments: argparse.Namespace) -> Options:
    if arguments.json and not arguments.plan:
        raise UserError("--json: got no --plan; expected both, it is a form of the plan.")
    if arguments.address is not None and arguments.num_cpus is not None:
        law = "no --address, the cluster has its own cores"
        raise UserError(message("--num-cpus", arguments.num_cpus, law))
    if arguments.storage.exists() and not arguments.storage.is_dir():
        raise UserError(message("--storage", str(arguments.storage), "a folder"))
    return Options(
        storage=arguments.storage,
        address=arguments.address,
        tracking_uri=arguments.tracking_uri,
        no_tracking=arguments.no_tracking,
        limit_trials=arguments.limit_trials,
        num_cpus=arguments.num_cpus,
        quiet=arguments.quiet,
        keep_checkpoints=arguments.keep_checkpoints,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.run",
        description="Plan a search space, run its cells on Ray Tune, and report memory against NDCG@10. "
        "Run again, it goes on where it stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("space", type=Path, metavar="SPACE", help="a search space, such as search_spaces/rece.yaml")
    parser.add_argument("--plan", action="store_true", help="print the cells and stop; starts neither Ray nor torch")
    parser.add_argument("--json", action="store_true", help="with --plan: for machines")
    parser.add_argument("--data", metavar="FILE", help="another data set: a canonical parquet file or a bundled name")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a key (train.epochs=3), an axis (train.batch_size=[64, 128]) or the sweep (scheduler.name=fifo)",
    )
    parser.add_argument("--limit-trials", type=_count, metavar="N", help="run at most N cells in this launch")
    parser.add_argument("--storage", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument("--address", metavar="ADDRESS", help="of a running Ray cluster; default: Ray in this process")
    parser.add_argument("--num-cpus", type=_count, metavar="N", help="cores for the Ray in this process; default: all")
    parser.add_argument("--tracking-uri", metavar="URI", help="of MLflow; default: SQLite in the storage folder")
    parser.add_argument("--no-tracking", action="store_true", help="leave MLflow out")
    parser.add_argument("--keep-checkpoints", action="store_true", help="also those of finished cells")
    parser.add_argument("--quiet", action="store_true", help="no live view")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}; expected a whole number >= 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
