"""What drills found, kept as text with its conditions, in the file that SEQREC_SOAK_RESULTS names."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from aftermath import ClusterSweep

from sweeps import environment

RESULTS = "SEQREC_SOAK_RESULTS"


def drill(what: str, sweep: ClusterSweep, *parts: Iterable[str]) -> None:
    """Add one drill's lines: to stdout, and to the file if there is to be one."""
    nodes = "network namespaces" if sweep.cluster.network.separate else "raylets on loopback addresses"
    lines = [line.replace(str(sweep.directory), "...") for part in parts for line in part]
    text = "\n".join([f"{what} ({nodes}; MLflow on {sweep.store.kind})", *(f"  {line}" for line in lines)])
    print(text, flush=True)
    if not os.environ.get(RESULTS):
        return
    path = Path(os.environ[RESULTS])
    head = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write((f"{conditions()}\n" if head else "") + f"\n{text}\n")


def conditions() -> str:
    """When, at which commit, on what."""
    commit = os.environ.get("SEQREC_COMMIT") or environment.describe().get("git_commit", "?")[:12]
    system = f"Linux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    command = " ".join(["python -m pytest", *sys.argv[1:]])
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit}, {system}\n{command}"
