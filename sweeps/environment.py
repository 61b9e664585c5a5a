"""On what a launch runs: versions, commit, hardware. Loads neither torch, ray nor mlflow for it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path


def describe() -> dict[str, str]:
    """The `environment` of a plan event; what cannot be found out is absent."""
    found = {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "ray", "mlflow")},
        "host": socket.gethostname(),
        "cpu": f"{os.cpu_count()} x {_cpu_name()}",
        "gpu": ", ".join(gpus()),
        "os": platform.platform(),
    }
    return {key: value for key, value in found.items() if value}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git_commit() -> str:
    """Commit of the tree this file lies in, `+` at its end if tracked files were changed since; outside git what the
    environment variable SEQREC_COMMIT says, or nothing."""
    commit = _output("git", "rev-parse", "HEAD")
    if not commit:
        return os.environ.get("SEQREC_COMMIT", "")
    return commit + "+" if _output("git", "status", "--porcelain", "--untracked-files=no") else commit


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


@cache
def gpus() -> tuple[str, ...]:
    """Names of this machine's GPUs, one each; none where CUDA_VISIBLE_DEVICES hides them all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return ()
    return tuple(_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines())


def _output(*command: str) -> str:
    """What a command prints; empty if there is no such command or it fails."""
    if not shutil.which(command[0]):
        return ""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return ""
    return result.stdout.strip()
