"""The front's cells timed again, alone: the last part of a launch, once every cell has its end.

A cell whose times were taken while it shared its GPU or its machine trains a few epochs more, with nothing beside it.
The ledger gets a `timing` event and nothing else: no failure here changes what a cell is. What has such an event is not
timed again, so that the next launch goes on where one was cut off.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec import data
from seqrec.errors import UserError
from sweeps import facts, remaining, timing
from sweeps.launch import Launch
from sweeps.options import Options
from sweeps.outcomes import reason
from sweeps.spec import SweepSpec

if TYPE_CHECKING:
    from sweeps.alone import Measure

EPOCHS = 3
"""Timed of each cell, after one that makes everything ready."""


def wanted(spec: SweepSpec, options: Options) -> bool:
    """Whether this launch shall do it: the option, else the search space."""
    return spec.resources.retime == "front" if options.retime is None else options.retime


def due(directory: Path) -> tuple[str, ...]:
    """Keys of the front's cells whose times are not known to be taken alone, least memory first."""
    from sweeps import pareto, results

    cells = results.load(directory).cells
    doubtful = set(cells.loc[cells["timing"].isin([timing.SHARED, timing.UNKNOWN]), "cell_key"])
    front = pareto.front(results.configurations(cells))
    return tuple(key for configuration in front for key in configuration.cell_keys if key in doubtful)


def front(
    launch: Launch, spec: SweepSpec, options: Options, begin: Callable[[], None], *, measure: Measure | None = None
) -> bool:
    """Time what is due again, if it is wanted and every cell has ended; whether there was anything.

    begin: called when Ray is there, before the first event. measure: in the place of `seqrec.stopwatch.epochs`. Raises
    LedgerError. What else goes wrong is a note on stderr.
    """
    if not wanted(spec, options) or launch.stopping or launch.remaining():
        return False
    keys = due(launch.ledger.path.parent)
    if not keys:
        return False
    print(f"timing {len(keys)} cells of the front again, alone")
    try:
        done = _time(launch, keys, spec, options, begin, measure)
    except (UserError, TimeoutError) as error:
        _note(f"the front was not timed again: {error}")
        return True
    left = "" if done == len(keys) else f" of {len(keys)}"
    print(f"{done}{left} cells of the front were timed again, alone.")
    return True


def _time(
    launch: Launch,
    keys: tuple[str, ...],
    spec: SweepSpec,
    options: Options,
    begin: Callable[[], None],
    measure: Measure | None,
) -> int:
    """How many cells got their times."""
    runs = {key: launch.cells[key].run for key in keys}
    splits = {run_data.model_dump_json(): data.load(run_data) for run_data in {run.data for run in runs.values()}}
    cpus = spec.resources.cpus_per_trial
    budget = launch.budget
    from sweeps import alone, cluster

    done = 0
    with cluster.session(
        options.address,
        num_cpus=options.num_cpus,
        data_bytes=sum(map(facts.data_bytes, splits.values())),
        log_file=launch.ledger.path.parent / "ray.log",
    ):
        on_gpu = cluster.on_gpus(spec.resources, options.address)
        remaining.check_same_kind(spec, launch.ledger.state.cells.values(), on_gpu)
        cluster.check(cpus, 1.0 if on_gpu else 0.0)
        begin()
        budget.shares = dict.fromkeys(keys, 1.0 if on_gpu else 0.0)
        try:
            for key, found in alone.each(
                runs,
                splits,
                cpus=cpus,
                on_gpu=on_gpu,
                epochs=EPOCHS,
                # Over its budget a launch waits for what runs; this need not be waited for.
                should_stop=lambda: launch.should_stop() or bool(launch.stopping),
                on_begin=budget.start,
                measure=measure,
            ):
                budget.release(key)
                if isinstance(found, Exception):
                    last = reason(found).splitlines()[-1]
                    _note(f"{launch.cells[key].label}: was not timed again, its result stands: {last}")
                    continue
                place = {"node": found.node, "gpu": found.gpu}
                launch.ledger.append("timing", sync=True, cell_key=key, epochs=EPOCHS, metrics=found.metrics, **place)
                done += 1
        finally:
            for key in keys:
                budget.release(key)
    return done


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
