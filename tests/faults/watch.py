"""A drill's sweep seen from outside: start it, wait for what the ledger says, kill it, and look at what is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import drive

from sweeps.ledger import FILE_NAME, Event, read

DRIVE = Path(__file__).with_name("drive.py")
ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0
"""Until a drill is given up; a quiet machine needs a tenth."""


class Sweep:
    """A drill's directory, and the driver that may be running on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = directory / "runs" / "drill" / FILE_NAME
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(DRIVE), str(self.directory), *options]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self) -> tuple[int, str]:
        assert self.process
        text, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, text

    def run(self, *options: str) -> tuple[int, str]:
        self.start(*options)
        return self.finish()

    def wait_for(self, kind: str, count: int) -> None:
        """Until the ledger holds so many events of a kind."""
        assert self.process
        deadline = time.monotonic() + PATIENCE_S
        while len(self.events(kind)) < count:
            assert self.process.poll() is None, self.finish()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Cells stay where they are for as long as the block runs, however slow the machine."""
        hold = self.directory / drive.HOLD
        hold.touch()
        yield
        hold.unlink()

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def events(self, *kinds: str) -> list[Event]:
        return [event for event, _ in read(self.ledger) if event["type"] in kinds]

    def ends(self) -> dict[int, Event]:
        """The terminal end of every cell, by batch size; each cell must have exactly one, and no epoch twice."""
        sizes = {event["cell_key"]: event["parameters"]["train.batch_size"] for event in self.events("cell")}
        final = [event for event in self.events("end") if event["outcome"] != "interrupted"]
        assert Counter(event["cell_key"] for event in final) == dict.fromkeys(sizes, 1)
        told = Counter((event["cell_key"], event["epoch"]) for event in self.events("epoch"))
        assert set(told.values()) == {1}
        return {sizes[event["cell_key"]]: event for event in final}

    def trace(self) -> list[tuple[str, str, str]]:
        """(pid, batch size, what), in the order of time."""
        lines = (self.directory / "trace").read_text().splitlines()
        return [tuple(line.split(" ", 3)[1:]) for line in sorted(lines)]


def undisturbed(sweep: Sweep, size: int, epochs: int = 4) -> dict[str, float]:
    """The metrics that training gives without Ray, without faults, times left out."""
    import torch

    from seqrec.train import train

    torch.set_num_threads(1)
    report = train(drive.make_run(drive.make_data(sweep.directory), size, epochs), device="cpu")
    return untimed(report.metrics)


def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if not key.endswith("_s")}
