"""Time and memory of one step (forward and backward of a loss), eager and as a CUDA graph.

eager  from the first launch to the end of the last kernel, the device idle before: where launches take longer than
       kernels, it is the launches that are timed
graph  the step captured once and replayed, with work queued before it so that no launch is waited for
bytes  most bytes allocated while a step runs, beyond what was allocated before it: gradients included, inputs not

Inputs change in place between any two timed calls. A captured step that goes on using the old ones gives other
gradients than the eager one, and is an error. So is a pair of gradients that cannot belong together: of any loss of
scores alone, s_ij = x_i . w_j,

    sum_i x_i . dL/dx_i = sum_ij s_ij dL/ds_ij = sum_j w_j . dL/dw_j

which costs nothing to ask at the sizes that are timed, where no float64 loss fits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.loss_problems import Problem
from seqrec import meters

Result = tuple[Tensor, Tensor | None, Tensor | None]
"""(value, gradient of the states (N, D), gradient of the items (V, D))."""
Step = Callable[[], Result]

SECONDS, MOST_CALLS, LEAST_CALLS = 0.25, 20, 5
"""Of each kind of call: as many as fit the time, within bounds; slower than a second each: three, than three seconds:
one."""
DELAY_CYCLES = 2_000_000
STALE = 0.7
"""Relative difference of two gradients of the states: rounding leaves it far below, other inputs make it sqrt(2)."""


TOGETHER = 1e-4
"""Of the product of norms that bounds either sum."""
ROUNDED = 2**-8
"""A number of 16 bits is off by at most this share of itself: of a sum of n such products, four deviations are
4 ROUNDED / sqrt(n) of the product of norms, 1e-5 at the smallest shape that is timed."""


class StaleError(RuntimeError):
    """A captured step that does not see its inputs change."""


class InconsistentError(RuntimeError):
    """Gradients of states and items that no loss of scores has together."""


@dataclass(frozen=True)
class Spread:
    """Milliseconds of repeated calls."""

    p20: float
    p50: float
    p80: float
    calls: int

    @staticmethod
    def of(times_ms: list[float]) -> Spread:
        if len(times_ms) == 1:
            return Spread(times_ms[0], times_ms[0], times_ms[0], 1)
        tenths = statistics.quantiles(times_ms, n=10, method="inclusive")
        return Spread(tenths[1], tenths[4], tenths[7], len(times_ms))


@dataclass(frozen=True)
class Reading:
    outcome: str
    """`ok`, or `oom`."""
    value: float | None = None
    eager: Spread | None = None
    graph: Spread | None = None
    peak_bytes: int | None = None


def read(make: Callable[[Problem], Step], problem: Problem, capture: bool, rounded: bool = False) -> Reading:
    """One step's figures; running out of memory is an outcome. Other errors are the caller's. rounded: its operands
    are of 16 bits."""
    try:
        return _read(make(problem), problem, capture and problem.device.type == "cuda", rounded)
    except torch.OutOfMemoryError:
        return Reading("oom")
    finally:
        if problem.device.type == "cuda":
            meters.release(problem.device)


def _read(step: Step, problem: Problem, capture: bool, rounded: bool) -> Reading:
    device = problem.device
    first = step()  # compiles; allocates the workspaces of matrix products
    value = float(first[0])
    hold_together(first, problem, rounded)
    del first
    peak = None
    if device.type == "cuda":
        peak = meters.grow(step, device)[1].peak_bytes
    eager = _repeat(step, problem, 0)
    graph = _repeat_captured(step, problem) if capture else None
    return Reading("ok", value, eager, graph, peak)


def hold_together(result: Result, problem: Problem, rounded: bool = False) -> None:
    """Raises InconsistentError for gradients that break the law of the module's docstring."""
    sums, bound = [], 0.0
    for gradient, leaf in ((result[1], problem.hidden), (result[2], problem.items)):
        if gradient is None:
            return
        sums.append(float(torch.linalg.vecdot(gradient, leaf).double().sum()))
        bound += float(gradient.norm() * leaf.norm())
    allowed = TOGETHER + (4 * ROUNDED / problem.hidden.numel() ** 0.5 if rounded else 0.0)
    if not abs(sums[0] - sums[1]) <= allowed * bound:
        raise InconsistentError(f"x . dL/dx is {sums[0]:.6g}, w . dL/dw {sums[1]:.6g}; expected the same.")


def _repeat_captured(step: Step, problem: Problem) -> Spread:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    problem.stir()
    # The same draws in both.
    torch.manual_seed(0)
    graph.replay()
    torch.manual_seed(0)
    _hold_against(captured[1], step()[1])
    return _repeat(graph.replay, problem, DELAY_CYCLES)


def _hold_against(captured: Tensor | None, eager: Tensor | None) -> None:
    if captured is None or eager is None:
        return
    apart = float((captured - eager).norm() / eager.norm())
    if not apart <= STALE:
        raise StaleError(f"the replayed step's gradient of the states is {apart:.2f} away from the eager one.")


def _repeat(call: Callable[[], object], problem: Problem, delay_cycles: int) -> Spread:
    times_ms = [_time(call, problem, delay_cycles)]
    wanted = round(1e3 * SECONDS / times_ms[0]) if times_ms[0] > 0 else MOST_CALLS
    wanted = min(MOST_CALLS, max(LEAST_CALLS, wanted))
    if times_ms[0] > 1e3:
        wanted = 3 if times_ms[0] <= 3e3 else 1
    times_ms += [_time(call, problem, delay_cycles) for _ in range(wanted - 1)]
    return Spread.of(times_ms)


def _time(call: Callable[[], object], problem: Problem, delay_cycles: int) -> float:
    problem.stir()
    if problem.device.type != "cuda":
        since = time.perf_counter()
        call()
        return (time.perf_counter() - since) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if delay_cycles:
        torch.cuda._sleep(delay_cycles)
    start.record()
    kept = call()
    end.record()
    torch.cuda.synchronize()
    del kept
    return float(start.elapsed_time(end))
