"""What one launch would do: which cells it takes over from other sweeps, which it runs, and within which limits. The
same answer for `--plan` and for the driver. No torch, no ray.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from seqrec.errors import UserError, message
from sweeps import placement, reuse
from sweeps.budget import HOUR_S, Budget
from sweeps.cells import Cell
from sweeps.ledger import CellState
from sweeps.options import Options
from sweeps.outcomes import Outcome
from sweeps.reuse import Found
from sweeps.space import Plan
from sweeps.spec import SweepSpec


def reusable(spec: SweepSpec, plan: Plan, options: Options) -> Found:
    """Finished cells of other sweeps. Raises UserError for a folder named by `--reuse` that holds none."""
    if options.no_reuse:
        return reuse.NOTHING
    storage = options.storage.absolute()
    return reuse.find(
        {cell.cell_key for cell in plan.cells},
        reuse.folders(storage, storage / spec.name, options.reuse),
        scheduler=spec.scheduler.model_dump(mode="json"),
        on_gpu=placement.on_gpus(spec.resources, options.address),
    )


def check_kind(spec: SweepSpec, options: Options, taken: Collection[str], on_gpus: bool) -> None:
    """Raises UserError where cells trained on GPUs would be mixed with trials on CPUs: `reusable` takes it for granted
    that a cluster has GPUs. taken: keys of cells that are taken over. on_gpus: whether trials use GPUs."""
    if not taken or on_gpus or not placement.on_gpus(spec.resources, options.address):
        return
    law = f"a cluster with GPUs, on which the {len(taken):,} cells that would be taken over were trained"
    hint = "resources.gpus_per_trial: 0 trains all cells on CPUs; --no-reuse takes none over"
    raise UserError(message(f"{spec.source}: resources.gpus_per_trial", spec.resources.gpus_per_trial, law, hint))


def check_same_kind(spec: SweepSpec, cells: Iterable[CellState], on_gpus: bool) -> None:
    """Raises UserError where trials of this launch would run on CPUs and the sweep's earlier ones ran on GPUs, or the
    other way: numbers, memory and times of both say different things. cells: as the ledger has them; a ledger that did
    not say where is taken for alike."""
    trained = [cell for cell in cells if cell.epochs and cell.source is None and cell.gpu_share is not None]
    others = [cell for cell in trained if bool(cell.gpu_share) != on_gpus]
    if others:
        kind = "CPUs" if on_gpus else "GPUs"
        law = f"trials on {kind}, on which {len(others):,} cells of this sweep were trained"
        hint = "another name starts a sweep of its own (--set name=...)"
        got = f"{spec.resources.gpus_per_trial!r}, which is {'GPUs' if on_gpus else 'CPUs'} here"
        raise UserError(f"{spec.source}: resources.gpus_per_trial: got {got}; expected {law}. hint: {hint}")


def to_run(
    cells: Iterable[Cell], ended: Mapping[str, Outcome], taken: Collection[str], retry: Collection[Outcome] = ()
) -> list[Cell]:
    """Cells without an end that no other sweep has, and the failures to try again; as planned.

    ended: outcome by cell_key. taken: keys of cells that are taken over. retry: outcomes to try again.
    """
    return [
        cell
        for cell in cells
        if (ended[cell.cell_key] in retry if cell.cell_key in ended else cell.cell_key not in taken)
    ]


def most_trials(spec: SweepSpec, options: Options) -> int | None:
    """Cells that a launch may run; None: all."""
    return options.limit_trials if options.limit_trials is not None else spec.budget.trials


def budget(spec: SweepSpec, options: Options) -> Budget:
    """A launch's limits in time: the options', else the search space's. Raises UserError for GPU-hours without GPUs."""
    wall = options.limit_wall_hours if options.limit_wall_hours is not None else spec.budget.wall_hours
    gpu = options.limit_gpu_hours if options.limit_gpu_hours is not None else spec.budget.gpu_hours
    if gpu is not None and not placement.on_gpus(spec.resources, options.address):
        place = "--limit-gpu-hours" if options.limit_gpu_hours is not None else f"{spec.source}: budget.gpu_hours"
        raise UserError(message(place, gpu, "none where trials use no GPU (resources.gpus_per_trial)"))
    return Budget(wall and wall * HOUR_S, gpu and gpu * HOUR_S)


def tidy(checkpoints: Path | None, outcome: Callable[[str], Outcome | None]) -> None:
    """Remove what is left of ended cells in the checkpoints' folder (None: all is to be kept): a driver may have died
    between the end and the removal, and a process that was cut off from the cluster writes once more. outcome: how a
    planned cell ended."""
    for folder in checkpoints.iterdir() if checkpoints and checkpoints.is_dir() else ():
        if outcome(folder.name) is not None:
            shutil.rmtree(folder, ignore_errors=True)
