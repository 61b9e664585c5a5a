"""A run's state in one file: written whole or not at all, read without executing anything, by the run that wrote it."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from seqrec.errors import CheckpointError
from seqrec.reports import EpochReport

_FORMAT = "seqrec checkpoint 1"

Identity = Mapping[str, object]
"""What a checkpoint belongs to, as plain JSON values: the run's identity, the data's digest, the numerics version."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run at the end of an epoch."""

    history: tuple[EpochReport, ...]
    """Every epoch so far."""
    engine: dict[str, object]
    """`Engine.state_dict()`: model and optimiser."""
    best: dict[str, Tensor] | None
    """Weights of the best validation so far; None before the first, and where the last epoch was the best."""


def save(path: Path, state: Checkpoint, identity: Identity) -> None:
    """Writes beside `path`, waits for the disk, then renames: a reader sees the old file or the new one, whole.

    So it is for two writers at once, on one host or several: a training that its cluster has given up, but that did not
    hear of it yet, and its successor. Each writes a file of its own; the last to rename wins.

    Raises OSError if the disk is full; the previous checkpoint is then untouched.
    """
    content = {
        "format": _FORMAT,
        "identity": json.dumps(identity, sort_keys=True),
        "history": [report.to_json() for report in state.history],
        "engine": state.engine,
        "best": state.best,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path, identity: Identity) -> Checkpoint | None:
    """The state in `path`, tensors on CPU; None if there is no such file.

    Raises CheckpointError for a file that is torn, that is no checkpoint of this project, or that another run wrote.
    """
    if not path.exists():
        return None
    try:
        # torch does not look at the checksums it writes: a flipped bit would come back as a weight.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({_first_line(error)}). hint: delete it to start from epoch 1"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: got format {found!r}; expected {_FORMAT!r}.")
    difference = _difference(json.loads(content["identity"]), json.loads(json.dumps(identity)))
    if difference:
        raise CheckpointError(
            f"{path}: belongs to another run ({difference}). hint: give every configuration its own working directory"
        )
    history = tuple(EpochReport(**report) for report in content["history"])
    return Checkpoint(history, content["engine"], content["best"])


def _difference(saved: object, wanted: object, key: str = "") -> str:
    """The first key at which two JSON trees differ, with both values; empty if they are equal."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for name in sorted(saved.keys() | wanted.keys()):
            found = _difference(saved.get(name), wanted.get(name), f"{key}.{name}" if key else cast(str, name))
            if found:
                return found
        return ""
    return "" if saved == wanted else f"{key}: {saved!r} in the file, {wanted!r} now"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
