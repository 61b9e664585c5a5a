"""The driver: remaining cells -> trials on Ray Tune -> ledger, MLflow, report. Tune executes; the ledger remembers.

Every launch is a new Tune experiment over the cells that have no end yet, so that starting, resuming and finishing what
a crash left are the same command. Ray is imported only when there is something to run.
"""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec import data, remote
from seqrec.data.tables import Split, Statistics
from sweeps import facts, mirror, mps, placement, remaining, retime, reuse, signals, stopping
from sweeps.cells import Cell
from sweeps.errors import LedgerError
from sweeps.feed import Feed
from sweeps.launch import Launch
from sweeps.options import Options
from sweeps.outcomes import Outcome
from sweeps.progress import View
from sweeps.space import Plan
from sweeps.spec import SweepSpec

if TYPE_CHECKING:
    from sweeps.mirror import Mirror
    from sweeps.tracking import Tracker
    from sweeps.trial import Settings, Trainer

EXIT_DONE, EXIT_FAILED = 0, 1
UNSHARED = "A cell that moves there from another node starts again. hint: --storage on a disk they share, or s3://..."
TRACKING_WAIT_S = 60.0
"""How long the end of a launch waits for MLflow."""
HURRY_S = 10.0
"""The same, for somebody who pressed Ctrl-C."""


def run(spec: SweepSpec, plan: Plan, options: Options, *, trainer: Trainer | None = None) -> int:
    """Run what remains of a sweep. The exit code: 0; 1 if a cell ended in an error or the ledger could not be written;
    130 if interrupted.

    trainer: in the place of `seqrec.train.train`. Raises UserError before anything has started.
    """
    return mirror.during(options, spec.name, lambda store: _run(spec, plan, options, store, trainer))


def _run(spec: SweepSpec, plan: Plan, options: Options, store: Mirror | None, trainer: Trainer | None) -> int:
    directory = options.storage.absolute() / spec.name
    checkpoints = directory / "checkpoints"
    forget = store.forget if store else lambda key: shutil.rmtree(checkpoints / key, ignore_errors=True)
    found = remaining.reusable(spec, plan, options)
    launch = Launch(
        directory,
        plan.cells,
        stopping.rule(spec.scheduler, plan.cells),
        budget=remaining.budget(spec, options),
        on_end=None if options.keep_checkpoints else forget,
    )
    if store:
        store.attach(launch.halt)
    known = launch.ledger.state.cells
    taken = {key: cell for key, cell in found.cells.items() if reuse.is_free(known.get(key))}
    ended = {key: outcome for key in launch.cells if (outcome := launch.outcome(key)) is not None}
    cells = remaining.to_run(plan.cells, ended, taken, options.retry)
    limit = remaining.most_trials(spec, options)
    todo = _first(launch, stopping.order(spec.scheduler, cells))[:limit]
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)

    def begin() -> None:
        """The launch's first events, once nothing can refuse it any more."""
        launch.open(spec.name, uuid.uuid4().hex, **facts.plan_event(spec, plan))
        for key, cell in taken.items():
            launch.adopt(key, cell)
        launch.retry(todo)

    def begin_late() -> None:
        """The same, where timing again is all that there is to do."""
        if not (todo or taken):
            begin()
            _start(tracker)

    tracker = _tracker(launch, options)
    leftovers = None if options.keep_checkpoints else checkpoints
    remaining.tidy(leftovers, launch.outcome)
    try:
        with _closed(launch), signals.heard(launch):
            if todo:
                _work(launch, todo, taken, spec, plan.statistics, begin, options, tracker, trainer)
            elif taken:
                begin()
                _start(tracker)
            timed = retime.front(launch, spec, options, begin_late)
            remaining.tidy(leftovers, launch.outcome)
    except LedgerError as error:
        print(f"error: {error}", file=sys.stderr)
        _finish_tracking(tracker, directory)
        return EXIT_FAILED
    if taken:
        print(f"{len(taken):,} cells were finished in other sweeps and are taken over.")
    if todo or taken or timed:
        if not launch.trouble:
            _report(directory, tracker)
        _print_front(directory, launch, options)
    else:
        print(f"{spec.name}: all {len(plan.cells)} cells are done; nothing is left to run.")
        if tracker and tracker.close(0.0):
            tracker = _tracker(launch, options)  # of an earlier launch that could not tell MLflow everything
            _start(tracker)
    return _sum_up(launch, tracker)


@contextmanager
def _closed(launch: Launch) -> Iterator[None]:
    """Close the launch whatever happens in the block; what ends it from outside is an interruption."""
    try:
        yield
    except BaseException:
        launch.interrupt()
        raise
    finally:
        launch.close()


def _tracker(launch: Launch, options: Options) -> Tracker | None:
    """Not started; mlflow is imported only then."""
    if options.no_tracking:
        return None
    from sweeps.tracking import Tracker

    return Tracker(launch.ledger.path, options.tracking_uri)


def _work(
    launch: Launch,
    todo: Sequence[Cell],
    taken: Collection[str],
    spec: SweepSpec,
    statistics: Statistics,
    begin: Callable[[], None],
    options: Options,
    tracker: Tracker | None,
    trainer: Trainer | None,
) -> None:
    """Start Ray, check that the trials can run there, run them."""
    splits = {run_data.model_dump_json(): data.load(run_data) for run_data in {cell.run.data for cell in todo}}
    from sweeps import cluster
    from sweeps.trial import Settings

    directory = launch.ledger.path.parent
    with (
        mps.service(mps.wish(spec.resources, options.address)),
        cluster.session(
            options.address,
            num_cpus=options.num_cpus,
            data_bytes=sum(map(facts.data_bytes, splits.values())),
            log_file=directory / "ray.log",
        ),
    ):
        if options.address and not options.mirror and (blind := cluster.blind_nodes(directory)):
            print(f"note: {directory} is not the same folder on {', '.join(blind)}. {UNSHARED}", file=sys.stderr)
        on_gpus = cluster.on_gpus(spec.resources, options.address)
        remaining.check_kind(spec, options, taken, on_gpus)
        remaining.check_same_kind(spec, launch.ledger.state.cells.values(), on_gpus)
        shares, smallest = _gpu_shares(spec, launch, todo, options.address)
        cluster.check(spec.resources.cpus_per_trial, max((share or 0.0 for share in shares.values()), default=0.0))
        launch.budget.shares = shares
        begin()
        for cell in todo:
            if shares[cell.cell_key] is None:
                launch.end(cell.cell_key, Outcome.PREDICTED_OOM, placement.reason(cell.predicted_bytes, smallest))
        launch.allowed = len(todo)
        _start(tracker)
        signals.listen(launch)  # again: Ray, when it starts, puts handlers of its own in place, which end the process
        settings = Settings(
            directory / "checkpoints",
            threads=max(1, int(spec.resources.cpus_per_trial)),
            trainer=trainer,
            store=options.mirror and remote.whole(options.mirror) + f"/{spec.name}",
            keep=options.keep_checkpoints,
            checkpoint_every_s=spec.resources.checkpoint_every_s,
            rungs=tuple(launch.rule.levels),
        )
        cells = placement.order(todo, statistics, shares) if spec.scheduler.name == "fifo" else todo
        with View(launch.snapshot, quiet=options.quiet):
            _feed(launch, cells, splits, spec, shares, settings)


def _feed(
    launch: Launch,
    cells: Sequence[Cell],
    splits: dict[str, Split],
    spec: SweepSpec,
    shares: dict[str, float | None],
    settings: Settings,
) -> None:
    """One experiment, until every cell has an end or the launch asks to stop."""
    from sweeps import tuning

    resources = spec.resources
    feed = Feed(
        launch,
        cells,
        slots=tuning.Slots(resources.cpus_per_trial),
        shares=shares,
        max_concurrent=resources.max_concurrent,
        ahead=resources.ahead,
    )
    tuning.fit(launch, feed, splits, settings, cpus=resources.cpus_per_trial)


def _first(launch: Launch, cells: Sequence[Cell]) -> list[Cell]:
    """What may run first, so that a limit on the number of trials never selects only cells that wait."""
    ready = launch.eligible(cells)
    keys = {cell.cell_key for cell in ready}
    return [*ready, *(cell for cell in cells if cell.cell_key not in keys)]


def _gpu_shares(
    spec: SweepSpec, launch: Launch, cells: Sequence[Cell], address: str | None
) -> tuple[dict[str, float | None], int]:
    """(part of a GPU by cell_key: 0 on CPU, None if no GPU is large enough; bytes of the smallest GPU, 0 if it decides
    nothing)."""
    resources, known, smallest = spec.resources, launch.ledger.state.cells, 0
    from sweeps import cluster

    if not cluster.on_gpus(resources, address):
        if resources.gpus_per_trial == "auto":
            where = "the cluster" if address else "this machine"
            print(f"note: no GPU is seen on {where}; trials run on its CPUs", file=sys.stderr)
        return dict.fromkeys((cell.cell_key for cell in cells), 0.0), 0
    if resources.gpus_per_trial == "auto":
        cluster.check(resources.cpus_per_trial, 1.0)
        smallest = cluster.gpu_bytes()
    shares: dict[str, float | None] = {}
    for cell in cells:
        key, asked = cell.cell_key, resources.gpus_per_trial
        share = placement.share(cell.predicted_bytes, smallest) if asked == "auto" else asked
        if share is None and resources.try_infeasible:
            share = 1.0
        shares[key] = max(share, 1.0) if share and key in known and known[key].alone else share
    return shares, smallest


# ---------------------------------------------------------------------------------------------------------- afterwards


def _report(directory: Path, tracker: Tracker | None) -> None:
    from sweeps import report

    written = report.write(directory)
    if tracker:
        tracker.attach_report(written.files, written.front_keys, written.verdict)


def _print_front(directory: Path, launch: Launch, options: Options) -> None:
    """The best so far; and if cells are left, why, and what goes on with them."""
    from sweeps import pareto

    pareto.main([str(directory)])
    left = len(launch.remaining())
    if launch.spent:
        print(f"The launch has spent its budget: {launch.spent}.")
    if left:
        again = f"; to go on:\n  {options.command}" if options.command else "; the same command goes on with them."
        print(f"{left} of {len(launch.cells)} cells are left{again}")


def _sum_up(launch: Launch, tracker: Tracker | None) -> int:
    """Where to look, on stdout; the exit code."""
    directory = launch.ledger.path.parent
    page = directory / "report" / "pareto.html"
    if page.exists():
        print(f"report: {page}")
    _finish_tracking(tracker, directory, wait_s=HURRY_S if launch.stopping == "interrupted" else TRACKING_WAIT_S)
    counts = launch.snapshot().counts
    failed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if outcome.is_failure)
    if failed:
        print(f"failed: {failed}; reasons in {launch.ledger.path}")
    if launch.trouble:
        print(f"error: {launch.trouble}", file=sys.stderr)
    if launch.stopping == "interrupted":
        return signals.EXIT_INTERRUPTED
    return EXIT_FAILED if launch.trouble or counts.get(Outcome.ERROR) else EXIT_DONE


def _start(tracker: Tracker | None) -> None:
    if tracker:
        tracker.start()


def _finish_tracking(tracker: Tracker | None, directory: Path, wait_s: float = TRACKING_WAIT_S) -> None:
    """Wait for MLflow to have every event, and say where it is to be seen."""
    if tracker is None:
        return
    pending = tracker.close(wait_s)
    if tracker.dead_letters:
        print(f"MLflow refused {tracker.dead_letters} batches; they lie in {directory / 'tracking.dead.jsonl'}.")
    for name, address in tracker.links():
        print(f"{name}: {address}")
    if pending:
        print(f"MLflow lacks {pending} events; `python -m sweeps.sync {directory}` tells it later.")
