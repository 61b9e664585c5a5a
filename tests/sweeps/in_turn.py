"""Cells one after the other in this process, as a worker runs them, each in a thread of its own: a command of its own,
so that the process is as fresh as a worker's.

`python -m tests.sweeps.in_turn FOLDER DEVICE KIND...` prints a JSON list: what each cell told, and the state of the
process after it. The kinds:

probe       trains two epochs with dropout and sampled negatives: what the others could disturb
other       another model and loss
exception   an error in the middle of a step
evaluation  an error in the middle of a validation
nan         a learning rate that makes weights infinite
oom         more memory asked for than there is
stopped     the driver stops it at its first epoch: SystemExit inside training
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import random
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from seqrec import data, ranking
from seqrec.config import Run
from seqrec.engine import Engine
from seqrec.reports import RunReport
from sweeps import trial
from sweeps.trial import Settings
from tests.faults.drive import make_data

HUGE = 2**60
"""Bytes that no machine has."""


def run_of(kind: str, path: Path, device: str) -> Run:
    """On a GPU wide enough for the kernels; there sums depend on the order of additions, and with weights that stand
    still the numbers do not."""
    width, rate = (64, 1e-30) if device == "cuda" else (8, 1e-2)
    tree: dict[str, Any] = {
        "data": {"path": str(path)},
        "model": {"name": "sasrec", "max_length": 8, "hidden_size": width, "n_blocks": 1, "dropout": 0.3},
        "loss": {"name": "bce", "n_negatives": 3},
        "train": {"batch_size": 8, "epochs": 2, "patience": None, "learning_rate": rate},
    }
    if kind == "other":
        tree["model"] = {"name": "bert4rec", "max_length": 6, "hidden_size": 16, "n_blocks": 1, "n_heads": 2}
        tree["loss"] = {"name": "ce"}
    elif kind == "nan":
        tree["train"]["learning_rate"] = 1e38
    elif kind != "probe":
        tree["train"]["seed"] = len(kind)
    return Run.model_validate(tree)


def trainer(run: Run, **options: Any) -> RunReport:
    """A worker's own training, with the fault that the working directory's name asks for."""
    kind = options["workdir"].name.partition("-")[2]
    with fault(kind, options["device"]):
        return trial._seqrec(run, settings=Settings(options["workdir"], 1), **options)


@contextmanager
def fault(kind: str, device: str) -> Iterator[None]:
    calls = 0
    negatives = Engine._negatives

    def fail(*arguments: Any) -> Any:
        """The second time: in a second step, or while the first is captured."""
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("in the middle")
        return negatives(*arguments)

    def out_of_memory(*_: Any, **__: Any) -> Any:
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1e-4)
        return torch.empty(HUGE, dtype=torch.uint8, device=device)

    if kind == "exception":
        with mock.patch.object(Engine, "_negatives", fail):
            yield
    elif kind == "evaluation":
        with mock.patch.object(ranking.Ranker, "rank", side_effect=RuntimeError("in the middle")):
            yield
    elif kind == "oom":
        with mock.patch.object(Engine, "_negatives", out_of_memory):
            yield
    else:
        yield


def state() -> dict[str, Any]:
    """What a cell may not change, as JSON values. Garbage is collected first."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    found: dict[str, Any] = {
        "torch's generator": _digest(torch.get_rng_state().numpy().tobytes()),
        "numpy's generator": _digest(pickle.dumps(np.random.get_state())),
        "python's generator": _digest(pickle.dumps(random.getstate())),
        "default dtype": str(torch.get_default_dtype()),
        "threads of torch": torch.get_num_threads(),
        "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic],
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled],
        "precision of products": [
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.mkldnn.matmul.fp32_precision,
        ],
        "autocast": [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")],
        "gradients": [torch.is_grad_enabled(), torch.is_anomaly_enabled()],
        "environment": _digest(json.dumps(sorted(os.environ.items())).encode()),
        "directory": os.getcwd(),
        "open files": sorted(_files()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "filters of warnings": len(warnings.filters),
        "tensors": [len(tensors), sum(tensor.nbytes for tensor in tensors)],
    }
    if torch.cuda.is_available():
        trial._settle()
        found["device's generator"] = _digest(torch.cuda.get_rng_state().numpy().tobytes())
        found["device's memory"] = [torch.cuda.memory_allocated(), torch.cuda.memory_reserved()]
        held = trial._resident()._held
        kept = () if held is None else (held.items, held.ends, held.lengths)
        found["bytes of the data"] = sum(-(-tensor.nbytes // 512) * 512 for tensor in kept)
    return found


def _files() -> Iterator[str]:
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the listing's own
            continue
        if not name.startswith("/dev/nvidia"):  # the driver opens more when it likes
            yield name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def cell(folder: Path, device: str, number: int, kind: str) -> list[Mapping[str, Any]]:
    """What the cell told."""
    run = run_of(kind, folder / "small.parquet", device)
    split = data.load(run.data)  # a new object for every cell, as from Ray
    told: list[Mapping[str, Any]] = []

    def report(result: Mapping[str, str]) -> None:
        told.append(json.loads(result[trial.MESSAGE]))
        if kind == "stopped" and told[-1]["kind"] == "epoch":
            sys.exit(0)

    key = f"{number}-{kind}"
    config = {"cell_key": key, "gpu_share": 1.0 if device == "cuda" else 0.0}
    splits = {run.data.model_dump_json(): split}
    settings = Settings(folder / "cells", 1, trainer)
    arguments = (config, {key: run.model_dump_json()}, splits, settings)
    with mock.patch.object(trial.tune, "report", report):
        thread = threading.Thread(target=trial.run, args=arguments)
        thread.start()
        thread.join()
    return told


def main() -> None:
    folder, device, *kinds = sys.argv[1:]
    make_data(Path(folder))
    cells = [
        {"kind": kind, "told": cell(Path(folder), device, number, kind), "state": state()}
        for number, kind in enumerate(kinds)
    ]
    print(json.dumps(cells))


if __name__ == "__main__":
    main()
