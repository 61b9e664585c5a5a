"""Rows that keep their conditions: what was measured, on what, with which versions and commit, when."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("results")


def conditions() -> dict[str, str]:
    """Hardware, versions, commit, command and UTC time of this process.

    The commit comes from the environment variable SEQREC_COMMIT where that is set (a machine without the repository),
    else from git; where neither is at hand it reads `unknown`.
    """
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "gpu": gpu,
        "cpu": _cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
    }


def append(name: str, row: Mapping[str, object], folder: Path = RESULTS) -> Path:
    """Adds one row to `<folder>/<name>.csv`; a file with other columns is refused: no figure may lose its meaning."""
    path = folder / f"{name}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    known: list[str] = []
    if path.exists():
        with path.open(newline="") as handle:
            known = next(csv.reader(handle), [])
    if known and known != list(row):
        raise ValueError(f"{path}: got columns {list(row)}; expected {known}.")
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, list(row))
        if not known:
            writer.writeheader()
        writer.writerow(dict(row))
    return path


@cache
def _commit() -> str:
    given = os.environ.get("SEQREC_COMMIT")
    if given:
        return given
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def _cpu() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()} x{cores}"
