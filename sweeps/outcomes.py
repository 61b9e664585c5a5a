"""How a cell can end, and how an exception becomes one of these ends. Imports neither torch nor ray: errors are known
by their names and messages, so that the driver can judge what a worker raised.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from enum import StrEnum

REASON_LINES = 6
"""Last lines of a traceback that a reason keeps."""

_OUT_OF_MEMORY_CLASSES = frozenset({"OutOfMemoryError", "MemoryError"})
_OUT_OF_MEMORY_TEXTS = (
    "CUDA error: out of memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


class Outcome(StrEnum):
    """The closed list. All but `interrupted` end a cell for good."""

    DONE = "done"
    STOPPED = "stopped"
    """By the scheduler, for being worse than its rivals."""
    DIVERGED = "diverged"
    OOM = "oom"
    PREDICTED_OOM = "predicted_oom"
    """Never tried: its predicted peak fits no device."""
    ERROR = "error"
    INTERRUPTED = "interrupted"
    """The attempt ended, the cell did not: it runs again."""

    @property
    def is_terminal(self) -> bool:
        return self is not Outcome.INTERRUPTED

    @property
    def is_failure(self) -> bool:
        return self in (Outcome.DIVERGED, Outcome.OOM, Outcome.PREDICTED_OOM, Outcome.ERROR)


def of(error: BaseException) -> Outcome:
    """The outcome of a trial that raised `error` (or that Ray wrapped it for)."""
    for link in _chain(error):
        names = {kind.__name__ for kind in type(link).__mro__}
        if names & _OUT_OF_MEMORY_CLASSES or (
            "RuntimeError" in names and any(text in str(link) for text in _OUT_OF_MEMORY_TEXTS)
        ):
            return Outcome.OOM
        if "DivergedError" in names:
            return Outcome.DIVERGED
    return Outcome.ERROR


def is_full_disk(error: BaseException) -> bool:
    """Whether the error is the machine's and not the cell's: no room, or no more quota, to write."""
    return any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT) for link in _chain(error))


def reason(error: BaseException) -> str:
    """The last lines of the error's traceback, the exception's own message last."""
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return "\n".join(lines[-REASON_LINES:])


def shared_oom(gpu_share: float, reason: str) -> str:
    """The reason of an attempt that ran out of memory on a part of a GPU."""
    last = reason.strip().splitlines()[-1:] or ["no reason given"]
    return f"out of memory on {gpu_share:g} of a GPU, is tried once more alone on a whole one: {last[0]}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and what was being handled, and the `cause` that Ray's RayTaskError carries."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        link = queue.pop(0)
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        queue += [link.__cause__, getattr(link, "cause", None), link.__context__]
