"""A process serves many cells; none of them may find a trace of another, however that one ended."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.sweeps import in_turn

ROOT = Path(__file__).parents[2]
ENDS = {
    "other": "done",
    "exception": "error",
    "evaluation": "error",
    "nan": "diverged",
    "oom": "oom",
    "stopped": None,
    "probe": "done",
}
"""Cells in turn, and how each ends; None: by the driver."""


def in_one_process(folder: Path, device: str, *kinds: str) -> list[dict[str, Any]]:
    folder.mkdir()
    command = [sys.executable, "-m", "tests.sweeps.in_turn", str(folder), device, *kinds]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    found: list[dict[str, Any]] = json.loads(answer.stdout)
    return found


def outcomes(cells: list[dict[str, Any]]) -> dict[str, str | None]:
    return {cell["kind"]: cell["told"][-1].get("outcome") for cell in cells}


def numbers(cell: dict[str, Any]) -> list[dict[str, float]]:
    """All that a cell told, epoch by epoch, but for what a clock says."""
    timed = ("time/", "best/elapsed_s")
    return [
        {name: value for name, value in message["metrics"].items() if not name.startswith(timed)}
        for message in cell["told"]
        if "metrics" in message
    ]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every kind of cell in one process."""
    return in_one_process(tmp_path_factory.mktemp("in_turn") / "used", "cpu", *ENDS)


def test_each_ends_as_it_should(used: list[dict[str, Any]]) -> None:
    assert outcomes(used) == ENDS
    reasons = {cell["kind"]: cell["told"][-1].get("reason", "") for cell in used}
    for kind in ("exception", "evaluation"):
        assert "in the middle" in reasons[kind], "the fault that was asked for, not another one"


def test_metrics_are_those_of_a_fresh_process_bit_for_bit(used: list[dict[str, Any]], tmp_path: Path) -> None:
    [fresh] = in_one_process(tmp_path / "fresh", "cpu", "probe")
    assert len(numbers(fresh)) == 3, "two epochs and the end"
    assert numbers(used[-1]) == numbers(fresh)


def test_the_process_is_as_it_was(used: list[dict[str, Any]]) -> None:
    before, *after = used
    for cell in after:
        changed = {name for name, value in cell["state"].items() if value != before["state"][name]}
        assert not changed, cell["kind"]


def test_of_the_data_one_copy_is_kept(used: list[dict[str, Any]]) -> None:
    """Items, ends and lengths of the training set, of which every cell was given a new object."""
    assert used[0]["state"]["tensors"][0] == 3


KEPT: list[Any] = []
CLOSE: list[Callable[[], Any]] = []


def _a_thread() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    CLOSE.extend([end.set, thread.join])


def _a_file() -> None:
    CLOSE.append(partial(os.close, os.open(__file__, os.O_RDONLY)))


LEAKS: dict[str, Callable[[], Any]] = {
    "torch's generator": lambda: torch.manual_seed(1),
    "numpy's generator": lambda: np.random.seed(1),
    "python's generator": lambda: random.seed(1),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "threads of torch": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "precision of products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "gradients": lambda: torch.set_grad_enabled(False),
    "environment": lambda: os.environ.update(LEAKED="1"),
    "open files": _a_file,
    "threads": _a_thread,
    "tensors": lambda: KEPT.append([torch.zeros(3)]),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_would_be_seen(name: str, tmp_path: Path) -> None:
    """Each in the process of this test: what it changes is put back."""
    undo = [
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
        (lambda value: setattr(torch.backends.cuda.matmul, "fp32_precision", value), "none"),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
    ]
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    before = in_turn.state()
    try:
        LEAKS[name]()
        after = in_turn.state()
    finally:
        for function, value in undo:
            function(value)
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])
        os.environ.pop("LEAKED", None)
        for close in CLOSE:
            close()
        CLOSE.clear()
        KEPT.clear()
    assert name in {key for key, value in after.items() if value != before[key]}
