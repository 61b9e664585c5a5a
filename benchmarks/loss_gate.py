"""Nothing is timed before it is right: every fused loss against the project's eager loss in float64, on fixed draws.

Errors are relative, of the value and of both gradients (norm of the difference), as a share of what is allowed:

    operands   gradients, logits of sd 0.4   sd 12    u
    float32    1e-5                          2e-5     6e-8
    float16    5e-4                          2e-3     2.8e-4
    bfloat16   4e-3                          1.5e-2   2.2e-3

u is what rounding both operands does to a score, over the scores' deviation: sqrt(2) times the mean relative error of
one operand. A mean over N rows, each with the errors of its own score and of its largest other one, is off by a normal
number of deviation sqrt(2) u sd / sqrt(N). The value may be off by 8 u sd / sqrt(N): four of those with weights that
leave half of the rows; or by 1e-6 of itself.

Where 16 bits decide which items are chosen at all (RECE's buckets, SCE's largest), the inputs are made so that every
choice is clear, or every score exact, in all of them: what is compared is then the same set of items.

On a GPU each module and width is checked in a process of its own, all at once: kernels are compiled in parallel into
the cache on disk that the timing reads, and one that breaks the device breaks its own process.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from benchmarks import loss_cases, loss_checks
from benchmarks.loss_cases import MODULES, Case, NotBuiltError
from benchmarks.loss_problems import QUICK, Problem, Shape, build
from benchmarks.loss_table import SHORT

OF_GRADIENT = {
    torch.float32: {0.4: 1e-5, 12.0: 2e-5},
    torch.float16: {0.4: 5e-4, 12.0: 2e-3},
    torch.bfloat16: {0.4: 4e-3, 12.0: 1.5e-2},
}
ROUNDING = {torch.float32: 6e-8, torch.float16: 2.8e-4, torch.bfloat16: 2.2e-3}
LEAST = 1e-6
REHEARSAL = 640, 4001
"""Positions and items of the run that compiles what will be timed."""


@dataclass(frozen=True)
class Finding:
    loss: str
    name: str
    share: float = 0.0
    """The worst error, as a share of the allowed one; above 1 or NaN: red."""
    error: str = ""
    """What was raised instead; not empty: red."""
    built: bool = True

    @property
    def red(self) -> bool:
        return self.built and (bool(self.error) or not self.share <= 1)

    @property
    def text(self) -> str:
        told = self.error or f"error {self.share:.3g} of what is allowed"
        return f"{self.loss}, {self.name}: {told}" if self.built else f"{self.loss}: not built ({self.error})"


Group = tuple[str, int]
"""Module of `seqrec.kernels`, width of the states."""


def check(
    pairs: Iterable[tuple[str, int]], device: torch.device, timeout_s: float, apart: bool | None = None
) -> list[Finding]:
    """All findings about these (loss, width). apart: in processes of their own; None: on a GPU. One that dies, or does
    not answer in time, is red."""
    pairs = list(dict.fromkeys(pairs))
    losses = list(dict.fromkeys(loss for loss, _ in pairs))
    groups = list(dict.fromkeys((MODULES[loss], width) for loss, width in pairs))
    if not (device.type == "cuda" if apart is None else apart):
        return [finding for group in groups for finding in findings(group, losses, device)]
    context = multiprocessing.get_context("spawn")
    running = []
    for group in groups:
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(sending, group, losses, device.type), daemon=True)
        process.start()
        sending.close()
        running.append((group, process, receiving))
    until = time.monotonic() + timeout_s
    found: list[Finding] = []
    for (module, width), process, receiving in running:
        name = f"width {width}"
        try:
            if receiving.poll(max(0.0, until - time.monotonic())):
                found += receiving.recv()
                process.join(5)
            else:
                found.append(Finding(module, name, error="no answer in time"))
        except EOFError:
            process.join(5)
            found.append(Finding(module, name, error=f"its process died ({process.exitcode})"))
        if process.is_alive():
            process.kill()
            process.join()
    return found


def _answer(sending: Connection, group: Group, losses: list[str], device: str) -> None:
    torch.set_num_threads(2)  # one of a dozen such processes
    sending.send(findings(group, losses, torch.device(device)))
    sending.close()


def findings(group: Group, losses: list[str], device: torch.device) -> list[Finding]:
    """Of one module and width: its checks, then its settings once each on a toy shape."""
    module, width = group
    quick = device.type != "cuda"
    low = torch.float32 if quick else torch.float16
    mine = {loss for loss in losses if MODULES[loss] == module}
    found: list[Finding] = []
    for one in loss_checks.checks(width, quick):
        # bf16 is timed of the first of all losses, and the way to it is the same in the others.
        for dtype in (low, torch.bfloat16) if one.loss == "ce" and not quick else (low,):
            if one.loss in mine:
                found.append(_judge(one.loss, f"{one.name} {SHORT[dtype]}", partial(_share, one, device, dtype)))
                mine -= {one.loss} if not found[-1].built else set()
    problem = build(QUICK if quick else Shape("rehearsal", *REHEARSAL, width), "random", device)
    for case in loss_cases.cases(quick):
        if case.loss in mine:
            name = f"{case.setting or 'as timed'}, width {width}"
            found.append(_judge(case.loss, name, partial(_rehearse, case, problem, low)))
    return found


def _judge(loss: str, name: str, share: Callable[[], float]) -> Finding:
    try:
        return Finding(loss, name, share())
    except NotBuiltError as error:
        return Finding(loss, name, error=str(error), built=False)
    except Exception as error:  # whatever a kernel raises is a finding about that kernel
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(str(error).split())[:160]
        return Finding(loss, name, error=f"{type(error).__name__}: {told} ({place.name}:{place.lineno})")


def _share(one: loss_checks.Check, device: torch.device, dtype: torch.dtype) -> float:
    """The worst error of a check as a share of the allowed one."""
    found, wanted = one.run(device, dtype)
    of_gradient = OF_GRADIENT[dtype][one.sd]
    of_value = max(LEAST, 8 * ROUNDING[dtype] * one.sd / one.rows**0.5 / abs(float(wanted[0])), one.value_bound)
    shares = [relative(found[0], wanted[0]) / of_value]
    for mine, reference in zip(found[1:], wanted[1:], strict=True):
        if reference is not None:
            assert mine is not None, "a gradient is missing"
            assert mine.dtype == torch.float32, f"a gradient in {mine.dtype}"
            shares.append(relative(mine, reference) / of_gradient)
    # max() would pass over a NaN.
    return max(shares) if all(share == share for share in shares) else float("nan")


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, f"shape {tuple(found.shape)}; expected {tuple(wanted.shape)}"
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _rehearse(case: Case, problem: Problem, dtype: torch.dtype) -> float:
    """Compiles what will be timed; 0 if all that comes out is finite."""
    result = case.fused(problem, dtype)()
    fine = all(bool(torch.isfinite(tensor).all()) for tensor in result if tensor is not None)
    return 0.0 if fine else float("nan")
