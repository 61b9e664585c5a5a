"""The main job: `python -m sweeps.run SPACE` plans a search space and runs what is left of it.

Exit codes: 0 every cell has a result (done, stopped, diverged, out of memory) or the budget is spent; 1 some cells
ended in an error, or the launch could not go on; 2 a mistake in the search space, the data or the command, told in one
message before Ray starts; 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from seqrec import data, remote
from seqrec.data.tables import Statistics
from seqrec.errors import SeqrecError, UserError, message
from sweeps import cards, costs, measured, mirror, plan as plans, remaining, reuse, space, spec
from sweeps.ledger import CellState, fold, read
from sweeps.options import Options
from sweeps.outcomes import Outcome
from sweeps.space import Plan
from sweeps.spec import SweepSpec

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
LEDGER = "ledger.jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(words)
    arguments.command = _command(words)
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
    if arguments.try_infeasible:
        resources = sweep.resources.model_copy(update={"try_infeasible": True})
        sweep = dataclasses.replace(sweep, resources=resources)
    plan = space.plan(sweep, _statistics(sweep))
    refusal = plans.refusal(sweep, plan)
    remaining.budget(sweep, options)
    if arguments.plan:
        _print_plan(sweep, plan, options, arguments)
    if refusal is not None:
        raise UserError(refusal)
    if not plan.cells:
        raise UserError(f"{sweep.source}: got no cell; expected at least one that the constraints leave.")
    if arguments.plan:
        return OK
    from sweeps import execute  # Ray and torch load here and not before

    return execute.run(sweep, plan, options)


def _command(words: Sequence[str]) -> str:
    """The command that goes on: the same, but that it tries nothing a second time, and without the secrets."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--retry" and not word.startswith("--retry="):
            kept.append(word)
        skip = word == "--retry"
    return shlex.join(["python", "-m", "sweeps.run", *map(remote.scrubbed, kept)])


def _statistics(sweep: SweepSpec) -> Statistics:
    try:
        return data.statistics(sweep.data)
    except UserError as error:
        # A law that a key of the search space breaks names its file; one about the data's file names that.
        raise UserError(f"{sweep.source}: {error}" if str(error).startswith("data.") else str(error)) from None


def _print_plan(sweep: SweepSpec, plan: Plan, options: Options, arguments: argparse.Namespace) -> None:
    """The plan and its costs on stdout; on stderr which ledgers could not be used."""
    card = cards.card(arguments.card or cards.TIMED)
    own = _own(options.storage / sweep.name)
    found = remaining.reusable(sweep, plan, options)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    standing = plans.Standing(
        {key: cell.outcome for key, cell in own.items() if cell.outcome is not None},
        {key: cell for key, cell in found.cells.items() if reuse.is_free(own.get(key))},
        options.retry,
        remaining.most_trials(sweep, options),
    )
    expected = costs.estimate(
        standing.would_run(plan),
        plan,
        card=card,
        assumed=arguments.card is None,
        gpus=arguments.gpus,
        resources=sweep.resources,
        scheduler=sweep.scheduler,
        measured=measured.load(arguments.times, plan.statistics) if arguments.times else None,
    )
    if arguments.json:
        print(json.dumps(plans.to_json(sweep, plan, standing, expected), indent=1))
    else:
        print(plans.text(sweep, plan, standing, expected), end="")
    sys.stdout.flush()


def _own(directory: Path) -> dict[str, CellState]:
    """What the sweep's own ledger says of its cells."""
    path = directory / LEDGER
    return fold(event for event, _ in read(path)).cells if path.exists() else {}


def _options(arguments: argparse.Namespace) -> Options:
    if arguments.json and not arguments.plan:
        raise UserError("--json: got no --plan; expected both, it is a form of the plan.")
    for name in ("card", "times"):
        if getattr(arguments, name) is not None and not arguments.plan:
            raise UserError(f"--{name}: got no --plan; expected both, it decides what a plan tells and no launch.")
    if arguments.no_reuse and arguments.reuse:
        raise UserError(message("--reuse", str(arguments.reuse[0]), "no --no-reuse, which takes nothing over"))
    if arguments.address is not None and arguments.num_cpus is not None:
        law = "no --address, the cluster has its own cores"
        raise UserError(message("--num-cpus", arguments.num_cpus, law))
    storage, address = Path(arguments.storage), None
    if remote.is_remote(arguments.storage):
        if "?" in arguments.storage or "#" in arguments.storage:
            raise UserError(message("--storage", remote.redacted(arguments.storage), "an address without ? and #"))
        address = remote.conceal(arguments.storage.rstrip("/"))
        storage = mirror.local_folder(address)
    if storage.exists() and not storage.is_dir():
        raise UserError(message("--storage", str(storage), "a folder"))
    return Options(
        storage=storage,
        mirror=address,
        wait_minutes=arguments.wait_minutes,
        address=arguments.address,
        tracking_uri=arguments.tracking_uri,
        no_tracking=arguments.no_tracking,
        limit_trials=arguments.limit_trials,
        limit_wall_hours=arguments.limit_wall_hours,
        limit_gpu_hours=arguments.limit_gpu_hours,
        retry=arguments.retry,
        reuse=tuple(arguments.reuse),
        no_reuse=arguments.no_reuse,
        command=arguments.command,
        num_cpus=arguments.num_cpus,
        quiet=arguments.quiet,
        retime=arguments.retime,
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
    parser.add_argument("--card", metavar="CARD", help="with --plan: a size, 80GiB, or a name; default: h100-80gb")
    parser.add_argument("--gpus", type=_count, default=1, metavar="N", help="with --plan: cards; default: 1")
    parser.add_argument("--times", type=Path, metavar="LEDGER", help="with --plan: take times from an earlier sweep")
    parser.add_argument("--data", metavar="FILE", help="another data set: a canonical file, an address, a bundled name")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a key (train.epochs=3), an axis (train.batch_size=[64, 128]) or the sweep (scheduler.name=fifo)",
    )
    parser.add_argument("--limit-trials", type=_count, metavar="N", help="run at most N cells in this launch")
    parser.add_argument("--limit-wall-hours", type=_hours, metavar="H", help="end this launch after H hours")
    parser.add_argument("--limit-gpu-hours", type=_hours, metavar="H", help="or after its trials had GPUs for H hours")
    parser.add_argument(
        "--retry", type=_failures, default=(), metavar="OUTCOME,...", help="run again what ended so: oom,error, say"
    )
    parser.add_argument(
        "--reuse",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="folders of sweeps whose finished cells are taken over, beside those in the storage",
    )
    parser.add_argument("--no-reuse", action="store_true", help="train every cell here, whatever other sweeps hold")
    parser.add_argument("--try-infeasible", action="store_true", help="also run cells predicted to fit no GPU")
    parser.add_argument(
        "--retime",
        action=argparse.BooleanOptionalAction,
        help="time the front's cells again at the end, alone, where they shared; default: resources.retime",
    )
    parser.add_argument(
        "--storage",
        default="runs",
        metavar="DIR",
        help="a folder, or a store's address: s3://bucket/sweeps; default: runs",
    )
    parser.add_argument(
        "--wait-minutes",
        type=_minutes,
        default=0.0,
        metavar="M",
        help="for a store that another driver holds; default: 0",
    )
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


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}; expected a number of hours > 0")
    return hours


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}; expected a number of minutes >= 0")
    return minutes


def _failures(text: str) -> tuple[Outcome, ...]:
    names = [outcome.value for outcome in Outcome if outcome.is_failure]
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in names]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]}; expected some of {', '.join(names)}, with commas between")
    return tuple(Outcome(word) for word in dict.fromkeys(words))


if __name__ == "__main__":
    sys.exit(main())
