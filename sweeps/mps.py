"""NVIDIA's Multi-Process Service for the trials of one machine: kernels of several processes run on a GPU at the same
time. Without it processes that share a GPU take turns, and a small batch leaves most of the card idle in its turn.

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
from pathlib import Path

from seqrec.errors import UserError

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
START_S = 10.0
"""Until the service must answer."""
END_S = 10.0
PR_SET_PDEATHSIG = 1


@contextmanager
def service(wanted: bool) -> Iterator[None]:
    """Run the service for the processes that are started in this block; nothing if it is not wanted, or if the
    environment names one that runs already.

    Ends with this process, however that ends. Raises UserError if it cannot be started.
    """
    if not wanted or os.environ.get(PIPES):
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="mps-", dir="/tmp"))  # the path of a socket must be short
    named = {PIPES: str(folder), LOGS: str(folder)}
    try:
        process = _start({**os.environ, **named}, folder)
        os.environ.update(named)
        try:
            yield
        finally:
            for name in named:
                del os.environ[name]
            _end(process, {**os.environ, **named})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    hint = "leave resources.mps out; trials that share a GPU then take turns"
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
