"""A cell's checkpoints by way of a store, so that it goes on wherever it lands: promoted on another node than it was
paused on, or after its node died.

The trainer writes to a folder of the node's; a thread carries the newest checkpoint to
`<store>/checkpoints/<cell_key>/<epochs>.pt`, now and then while it trains and once more when it stops. What a store
does not take is tried again with the next one: training never waits for it, nor fails with it. No torch, no ray.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqrec import remote
from seqrec.remote import StoreDownError
from seqrec.reports import EpochReport

CHECKPOINT_NAME = "last.pt"
"""As in `seqrec.trainer`, which would import torch here."""
EVERY_S = 30.0
"""Between two checkpoints of a training; at most so much of it is lost with its node, and an epoch."""
LAST_WAIT_S = 60.0
"""How long a trial that stops tries to bring its last checkpoint to a store that does not answer."""
LAST_TRY_S = 30.0
"""And how long a try may take that is under way then."""
WHOLE_OR_NOT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Stores of objects, in which one that is not brought to its end does not exist. A file of a shared disk does."""
SUBJECT = "--storage"

_log = logging.getLogger(__name__)


class Carried:
    """The working folder of one attempt at a cell.

    store: address of the sweep's folder in a store; None: `folder` is the place for checkpoints, nothing is carried.
    Raises UserError if this node cannot use the store; one that does not answer costs the epochs that it holds.
    """

    def __init__(self, store: str | None, folder: Path, cell_key: str, *, every_s: float = EVERY_S) -> None:
        self.workdir = folder / cell_key
        self.is_needed = True
        """Whether the last checkpoint shall be in the store when this attempt is over."""
        self._place = f"checkpoints/{cell_key}"
        self._store = store
        self._every_s = every_s
        self._epochs = self._sent = 0
        """Epochs in the newest checkpoint, and in the one that the store has."""
        self._last = 0
        """The last epoch told."""
        self._seen: tuple[int, int] | None = None
        """Which file the newest checkpoint is."""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if store is not None:
            self.workdir = Path(tempfile.mkdtemp(prefix=f"cell-{cell_key}-"))
            try:
                self._fetch()
            except BaseException:  # nobody gets this attempt, so nobody closes it
                shutil.rmtree(self.workdir, ignore_errors=True)
                raise

    def around(self, trainer: Callable[..., Any]) -> Callable[..., Any]:
        """The trainer, with an `on_epoch` that carries the checkpoint first."""
        if self._store is None:
            return trainer

        def train(run: Any, *, on_epoch: Callable[[EpochReport], None], **options: Any) -> Any:
            def told(report: EpochReport) -> None:
                self._offer(report.epoch)
                on_epoch(report)

            return trainer(run, on_epoch=told, **options)

        return train

    def close(self) -> None:
        """Bring the last checkpoint if it is needed, and clear the node. A store that neither answers nor fails keeps
        nobody: a thread of its own waits for it."""
        if self._store is None:
            return
        self._closing.set()
        end = time.monotonic() + LAST_WAIT_S
        last = threading.Thread(target=self._bring, args=(end,), name="last checkpoint", daemon=True)
        last.start()
        last.join(LAST_WAIT_S + LAST_TRY_S)
        if last.is_alive():
            _log.warning("a checkpoint could not be brought to the store (no answer for %.0f s)", LAST_TRY_S)
        shutil.rmtree(self.workdir, ignore_errors=True)

    # -------------------------------------------------------------------------------------------------------- inside

    def _bring(self, end: float) -> None:
        if self._thread:
            self._thread.join()
        self._look()  # an interruption is written down after its epoch was told
        while self.is_needed and not self._send() and time.monotonic() < end:
            time.sleep(1.0)

    def _offer(self, epoch: int) -> None:
        """An epoch has ended, and whatever is written of it before it is told lies there."""
        self._last = epoch
        self._look()
        if self._thread is None and self._epochs > self._sent:
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        """A checkpoint that is new since the last look is that of the last epoch: not every epoch has one."""
        try:
            found = (self.workdir / CHECKPOINT_NAME).stat()
        except FileNotFoundError:
            return
        if (found.st_ino, found.st_mtime_ns) != self._seen:
            self._seen, self._epochs = (found.st_ino, found.st_mtime_ns), self._last

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            self._send()

    def _send(self) -> bool:
        """Whether the store has the newest checkpoint."""
        epoch, path = self._epochs, self.workdir / CHECKPOINT_NAME
        if epoch <= self._sent or not path.exists():
            return True
        try:
            system, folder = self._open()
            # The trainer may put a newer one in its place meanwhile: the name promises no more epochs than there are.
            self._put(system, str(path), f"{folder}/{epoch:06d}.pt")
            for number, older in self._there(system, folder):
                if number < epoch:
                    system.rm_file(older)
        except Exception as error:  # as in `remote.asking`
            _log.warning("a checkpoint could not be brought to the store (%s)", type(error).__name__)
            return False
        self._sent = epoch
        return True

    @staticmethod
    def _put(system: Any, path: str, place: str) -> None:
        """All of it or nothing: what has no such promise gets it under another name first."""
        protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
        if protocols & WHOLE_OR_NOT:
            system.put_file(path, place)
        else:
            system.put_file(path, f"{place}.part")
            system.mv(f"{place}.part", place)

    def _fetch(self) -> None:
        """The newest checkpoint, if the store has any."""
        assert self._store is not None
        fresh = self.workdir / f"{CHECKPOINT_NAME}.fetched"
        try:
            with remote.asking(self._store, SUBJECT):
                self._sent = self._fetch_newest(fresh)
        except StoreDownError as error:
            _log.warning("a cell starts again: %s", error)
            fresh.unlink(missing_ok=True)

    def _fetch_newest(self, fresh: Path) -> int:
        """Its epochs; 0 if there is none. The attempt before may be putting a newer one in its place: look again."""
        system, folder = self._open()
        for looks_left in (2, 1, 0):
            there = self._there(system, folder)
            if not there:
                return 0
            epochs, path = max(there)
            try:
                system.get_file(path, str(fresh))
            except FileNotFoundError:
                if not looks_left:
                    raise
                continue
            fresh.replace(self.workdir / CHECKPOINT_NAME)
            self._last = epochs
            self._look()
            return epochs
        return 0

    def _open(self) -> tuple[Any, str]:
        assert self._store is not None
        system, root = remote.open_store(self._store, SUBJECT)
        return system, f"{root.rstrip('/')}/{self._place}"

    @staticmethod
    def _there(system: Any, folder: str) -> list[tuple[int, str]]:
        """(epochs, path) of what the store has."""
        names = [(str(path).rpartition("/")[2].removesuffix(".pt"), str(path)) for path in system.find(folder)]
        return [(int(name), path) for name, path in names if name.isdecimal()]
