"""Checkpoints by way of a store: a cell that was paused goes on in another folder from the epoch it had reached."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrec.config import Run
from seqrec.errors import UserError
from seqrec.reports import EpochReport
from sweeps import handover
from sweeps.handover import CHECKPOINT_NAME, Carried
from tests.cluster.conftest import wait_for

STORE = "memory://sweeps/here/s"
FOLDER = "/sweeps/here/s/checkpoints/cell"
RUN: Any = Run.model_construct()


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: Any) -> Callable[..., Carried]:
    monkeypatch.setattr(handover.tempfile, "tempdir", str(tmp_path))
    return lambda **options: Carried(STORE, Path("/nowhere"), "cell", **{"every_s": 60.0} | options)


def train(carried: Carried, epochs: range, on_epoch: Callable[[EpochReport], None] = lambda report: None) -> None:
    """A trainer that writes its checkpoint, then tells of the epoch, as `seqrec.trainer` does."""

    def trainer(run: Run, *, on_epoch: Callable[[EpochReport], None], workdir: Path) -> None:
        for epoch in epochs:
            (workdir / CHECKPOINT_NAME).write_bytes(b"epoch %d" % epoch)
            on_epoch(EpochReport(epoch, {}, True))

    carried.around(trainer)(RUN, on_epoch=on_epoch, workdir=carried.workdir)


def names(system: Any) -> list[str]:
    return [path.rpartition("/")[2] for path in system.find(FOLDER)]


def test_paused_here_and_promoted_there(attempt: Callable[..., Carried], system: Any) -> None:
    one = attempt()
    train(one, range(1, 4))
    one.close()
    assert not one.workdir.exists(), "the node is clear"
    assert names(system) == ["000003.pt"]
    two = attempt()
    assert two.workdir != one.workdir
    assert (two.workdir / CHECKPOINT_NAME).read_bytes() == b"epoch 3"
    train(two, range(1, 6))  # the first three told again
    two.close()
    assert names(system) == ["000005.pt"]
    assert system.cat_file(f"{FOLDER}/000005.pt") == b"epoch 5"


def test_a_trial_that_is_stopped_from_outside_still_brings_its_checkpoint(
    attempt: Callable[..., Carried], system: Any
) -> None:
    """Ray stops a trial by SystemExit where it tells of an epoch."""

    def stop(report: EpochReport) -> None:
        if report.epoch == 2:
            raise SystemExit

    one = attempt()
    with pytest.raises(SystemExit):
        train(one, range(1, 9), stop)
    one.close()
    assert names(system) == ["000002.pt"]


def test_a_node_that_dies_has_brought_what_it_had_a_while_ago(attempt: Callable[..., Carried], system: Any) -> None:
    one = attempt(every_s=0.01)
    train(one, range(1, 3), lambda report: wait_for(lambda: names(system) == [f"{report.epoch:06d}.pt"], "it"))
    # It dies here: nothing is closed.
    assert (attempt().workdir / CHECKPOINT_NAME).read_bytes() == b"epoch 2"


def test_a_node_that_dies_while_it_brings_one_leaves_none_torn(
    attempt: Callable[..., Carried], system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where half a file is a file, as on a disk."""
    one = attempt()
    train(one, range(1, 3))
    one.close()
    two = attempt()

    def half(self: Any, path: str, place: str) -> None:
        self.pipe_file(place, Path(path).read_bytes()[:3])
        raise OSError("the node is gone")

    with monkeypatch.context() as patched:
        patched.setattr(type(system), "put_file", half)
        train(two, range(3, 4))
        assert not two._send()
        two.is_needed = False
        two.close()
    three = attempt()
    assert (three.workdir / CHECKPOINT_NAME).read_bytes() == b"epoch 2"
    train(three, range(3, 5))
    three.close()
    assert "000004.pt" in names(system)


def test_a_finished_cell_needs_no_checkpoint(attempt: Callable[..., Carried], system: Any) -> None:
    one = attempt()
    train(one, range(1, 4))
    one.is_needed = False
    one.close()
    assert names(system) == []


def test_a_store_that_is_down_costs_epochs_and_no_cell(
    attempt: Callable[..., Carried], system: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = attempt()
    train(one, range(1, 4))
    one.close()

    def down(*args: Any, **named: Any) -> None:
        raise OSError("https://store/?sig=c4n4ry")

    monkeypatch.setattr(handover, "LAST_WAIT_S", 0.0)
    monkeypatch.setattr(type(system), "get_file", down)
    monkeypatch.setattr(type(system), "put_file", down)
    two = attempt()
    assert list(two.workdir.iterdir()) == []
    train(two, range(1, 3))
    two.close()
    assert names(system) == ["000003.pt"]
    assert "a cell starts again: --storage: got 'memory://sweeps/here/s'" in caplog.text
    assert "could not be brought to the store (OSError)" in caplog.text
    assert "c4n4ry" not in caplog.text


def test_a_store_that_never_answers_keeps_no_trial(
    attempt: Callable[..., Carried],
    system: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor does one that hangs in the middle of an earlier checkpoint."""
    monkeypatch.setattr(handover, "LAST_WAIT_S", 0.0)
    monkeypatch.setattr(handover, "LAST_TRY_S", 0.1)
    answer, asked = threading.Event(), threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        asked.set()
        answer.wait()

    monkeypatch.setattr(type(system), "put_file", hang)
    for every_s in (60.0, 0.01):
        asked.clear()
        one = attempt(every_s=every_s)
        train(one, range(1, 3))
        if every_s < 1:
            wait_for(asked.is_set, "a checkpoint under way")
        one.close()
        assert not one.workdir.exists()
    assert caplog.messages.count("a checkpoint could not be brought to the store (no answer for 0 s)") == 2
    answer.set()


def test_the_attempt_before_is_just_bringing_a_newer_one(
    attempt: Callable[..., Carried], system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the get, the older one goes."""
    system.pipe_file(f"{FOLDER}/000002.pt", b"epoch 2")
    get = type(system).get_file

    def late(self: Any, path: str, *args: Any, **named: Any) -> None:
        if self.exists(f"{FOLDER}/000002.pt"):
            self.pipe_file(f"{FOLDER}/000003.pt", b"epoch 3")
            self.rm_file(f"{FOLDER}/000002.pt")
        get(self, path, *args, **named)

    monkeypatch.setattr(type(system), "get_file", late)
    assert (attempt().workdir / CHECKPOINT_NAME).read_bytes() == b"epoch 3"


def test_a_node_without_credentials_says_so_and_keeps_nothing(
    tmp_path: Path, attempt: Callable[..., Carried], system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **named: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(type(system), "find", refuse)
    with pytest.raises(
        UserError, match="--storage: got 'memory://sweeps/here/s'; expected credentials that may use it"
    ):
        attempt()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_carries_nothing(tmp_path: Path) -> None:
    one = Carried(None, tmp_path, "cell")
    assert one.workdir == tmp_path / "cell"
    trainer = object()
    assert one.around(trainer) is trainer
    one.close()


@pytest.mark.parametrize(("written", "left", "name"), [({2}, False, "000002.pt"), ({2}, True, "000005.pt")])
def test_the_name_says_the_epochs_that_are_in_it(
    written: set[int], left: bool, name: str, attempt: Callable[..., Carried], system: Any
) -> None:
    """Not every epoch is written down; an interrupted one is, after it was told."""
    one = attempt()

    def trainer(run: Run, *, on_epoch: Callable[[EpochReport], None], workdir: Path) -> None:
        for epoch in range(1, 6):
            if epoch in written:
                (workdir / CHECKPOINT_NAME).write_bytes(b"epoch %d" % epoch)
            on_epoch(EpochReport(epoch, {}, True))
        if left:
            (workdir / f"{CHECKPOINT_NAME}.tmp").write_bytes(b"epoch 5")
            (workdir / f"{CHECKPOINT_NAME}.tmp").replace(workdir / CHECKPOINT_NAME)

    one.around(trainer)(RUN, on_epoch=lambda report: None, workdir=one.workdir)
    one.close()
    assert names(system) == [name]
