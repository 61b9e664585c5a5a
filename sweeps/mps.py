"""NVIDIA's Multi-Process Service for the trials of one machine: kernels of several processes run on a GPU at the same
time. Without it processes that share a GPU take turns, and a small batch leaves most of the card idle in its turn.

With `resources.mps: auto` the service runs where trials share a GPU of this machine and it can be started; a line says
so, and why not where it should have been.

Source: NVIDIA, "Multi-Process Service" (docs.nvidia.com/deploy/mps), sections on nvidia-cuda-mps-control and on
limitations: a fatal error of one client ends all clients of a GPU, whose cells are then tried again.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from seqrec.errors import UserError, message
from sweeps import placement
from sweeps.spec import Resources

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
START_S = 10.0
"""Until the service must answer."""
END_S = 10.0
PR_SET_PDEATHSIG = 1


class Wish(StrEnum):
    NO = "no"
    IF_IT_CAN = "if it can"
    """Without it trials run too, slower."""
    YES = "yes"


def wish(resources: Resources, address: str | None) -> Wish:
    """Whether a launch is to have the service. Raises UserError where it was asked for and trials run on nodes, whose
    service is not this process's to start."""
    if resources.mps is True and address:
        hint = "start nvidia-cuda-mps-control on the nodes, before Ray"
        raise UserError(message("resources.mps", True, "false with --address", hint))
    if not resources.mps or address or not placement.on_gpus(resources, None):
        return Wish.NO
    if resources.mps is True:
        return Wish.YES
    alone = resources.gpus_per_trial != "auto" and resources.gpus_per_trial >= 1
    if alone or not shutil.which(CONTROL):
        return Wish.NO
    if not _counts_from_zero():
        law = "CUDA_VISIBLE_DEVICES does not name the first GPUs in their order, as the Multi-Process Service needs it"
        print(f"note: trials that share a GPU take turns. {law}", file=sys.stderr)
        return Wish.NO
    return Wish.IF_IT_CAN


def _counts_from_zero() -> bool:
    """Whether CUDA_VISIBLE_DEVICES, if set, names the first GPUs in their order: the service would be shown no others,
    and would count from zero those that it is shown."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named is None or named.replace(" ", "").split(",") == [str(i) for i in range(named.count(",") + 1)]


@contextmanager
def service(wanted: Wish) -> Iterator[None]:
    """Run the service for the processes that are started in this block; nothing if it is not wanted, or if the
    environment names one that runs already.

    Ends with this process, however that ends. Raises UserError if it must run and cannot be started.
    """
    if wanted is Wish.NO or os.environ.get(PIPES):
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="mps-", dir="/tmp"))  # the path of a socket must be short
    named = {PIPES: str(folder), LOGS: str(folder)}
    environment = {**os.environ, **named}
    try:
        process = _tried(wanted, environment, folder)
        if process is None:
            yield
            return
        os.environ.update(named)
        try:
            yield
        finally:
            for name in named:
                del os.environ[name]
            _end(process, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tried(wanted: Wish, environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes] | None:
    """The service, started; None, and a line that says why, if it cannot be and need not."""
    try:
        process = _start(environment, folder)
    except UserError as error:
        if wanted is Wish.YES:
            raise
        print(f"note: trials that share a GPU take turns. {error}", file=sys.stderr)
        return None
    if wanted is Wish.IF_IT_CAN:
        print("note: NVIDIA's Multi-Process Service runs for this launch (resources.mps)", file=sys.stderr)
    return process


def _start(environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    if not shutil.which(CONTROL):
        raise _refusal(f"no {CONTROL} on the PATH")
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [CONTROL, "-f"], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_tie
        )
    deadline = time.monotonic() + START_S
    while not _tell(environment, "get_server_list"):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            _end(process, environment)
            said = " ".join((folder / "output").read_text(errors="replace").split())[-200:]
            raise _refusal(f"{CONTROL} {'ended' if ended else 'did not answer'}{said and f' ({said})'}")
        time.sleep(0.1)
    return process


def _refusal(what: str) -> UserError:
    hint = "resources.mps: false; trials that share a GPU then take turns"
    return UserError(f"resources.mps: {what}; expected NVIDIA's Multi-Process Service to start. hint: {hint}.")


def _tie() -> None:
    """In the child: die with the driver, and leave Ctrl-C to it."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _tell(environment: dict[str, str], command: str) -> bool:
    """Whether the service took a command."""
    try:
        told = subprocess.run([CONTROL], input=f"{command}\n".encode(), env=environment, capture_output=True, timeout=5)
    except subprocess.TimeoutExpired:
        return False
    return told.returncode == 0


def _end(process: subprocess.Popen[bytes], environment: dict[str, str]) -> None:
    """Ask it to quit, then less kindly."""
    steps = (lambda: _tell(environment, "quit"), process.terminate, process.kill)
    for step in steps:
        if process.poll() is None:
            step()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                continue
