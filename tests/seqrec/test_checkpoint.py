"""A checkpoint is whole or not there, and belongs to one run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from seqrec import checkpoint
from seqrec.checkpoint import Checkpoint
from seqrec.errors import CheckpointError
from seqrec.reports import EpochReport

IDENTITY = {"run": {"train": {"seed": 1, "epochs": 3}, "loss": {"name": "ce"}}, "data": "ab", "numerics": 1}


def state(epochs: int = 2) -> Checkpoint:
    history = tuple(EpochReport(n, {"train/loss": 1.0 / n}, is_best=n == 1) for n in range(1, epochs + 1))
    engine: dict[str, object] = {"model": {"w": torch.arange(1000.0)}, "optimizer": {"state": {0: {"step": 3}}}}
    return Checkpoint(history, engine, {"w": torch.ones(1000)})


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.pt"
    checkpoint.save(path, state(), IDENTITY)
    loaded = checkpoint.load(path, IDENTITY)
    assert loaded is not None
    assert loaded.history == state().history
    assert torch.equal(loaded.engine["model"]["w"], torch.arange(1000.0))
    assert loaded.best is not None
    assert torch.equal(loaded.best["w"], torch.ones(1000))
    assert os.listdir(path.parent) == ["last.pt"]


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "last.pt", IDENTITY) is None


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_a_torn_file_says_so(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, state(), IDENTITY)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"last\.pt: cannot be read as a checkpoint .* hint: delete it"):
        checkpoint.load(path, IDENTITY)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, state(), IDENTITY)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 1234] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.load(path, IDENTITY)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("a note")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path, IDENTITY)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"got format None; expected 'seqrec checkpoint 1'\."):
        checkpoint.load(path, IDENTITY)


class Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("executed",))


def test_nothing_in_the_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": Attack()}, "last.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(Path("last.pt"), IDENTITY)
    assert os.listdir() == ["last.pt"]


def test_another_runs_checkpoint_is_refused_by_key(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, state(), IDENTITY)
    other_seed = {**IDENTITY, "run": {"train": {"seed": 2, "epochs": 3}, "loss": {"name": "ce"}}}
    with pytest.raises(CheckpointError, match=r"another run \(run\.train\.seed: 1 in the file, 2 now\)"):
        checkpoint.load(path, other_seed)
    with pytest.raises(CheckpointError, match="data: 'ab' in the file, 'cd' now"):
        checkpoint.load(path, {**IDENTITY, "data": "cd"})


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, state(1), IDENTITY)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(path, state(2), IDENTITY)
    loaded = checkpoint.load(path, IDENTITY)
    assert loaded is not None
    assert len(loaded.history) == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_half_written_file_of_a_killed_process_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.with_name("last.pt.tmp").write_bytes(b"PK\x03\x04")
    assert checkpoint.load(path, IDENTITY) is None
    checkpoint.save(path, state(), IDENTITY)
    assert checkpoint.load(path, IDENTITY) is not None


def test_two_writers_at_once_leave_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a cluster starts a cell elsewhere while the first process, cut off, still finishes its epoch."""
    path = tmp_path / "last.pt"
    write = torch.save

    def while_another_saves(content: object, file: object) -> None:
        monkeypatch.setattr(torch, "save", write)
        checkpoint.save(path, state(3), IDENTITY)
        write(content, file)

    monkeypatch.setattr(torch, "save", while_another_saves)
    checkpoint.save(path, state(2), IDENTITY)
    loaded = checkpoint.load(path, IDENTITY)
    assert loaded is not None
    assert loaded.history == state(2).history, "the last to rename wins"
    assert os.listdir(tmp_path) == ["last.pt"]
