"""The thread of the driver that follows a ledger and tells MLflow."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sweeps import ledger
from sweeps.tracking import client, links
from sweeps.tracking.client import RefusedError, UnavailableError
from sweeps.tracking.cursor import Cursor
from sweeps.tracking.links import safe_uri
from sweeps.tracking.session import AbandonedError, Report, Session, Target

LOCK_NAME = "tracking.lock"
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0

_log = logging.getLogger(__name__)


class Tracker:
    """Follows one ledger in a thread of its own; no method but `close` ever waits for MLflow.

    tracking_uri: sqlite:///..., http(s)://... or a database's address; None: a SQLite file beside the sweep's
    directory. artifact_root: directory or address for the artifacts of a new experiment; None: beside the SQLite file,
    or wherever the server puts them. connect: makes the client of an address; tests give their own.
    Raises UserError at once for an address that MLflow cannot serve.
    """

    def __init__(
        self,
        ledger_path: Path,
        tracking_uri: str | None = None,
        *,
        artifact_root: str | Path | None = None,
        poll_s: float = 2.0,
        first_wait_s: float = FIRST_WAIT_S,
        connect: Callable[[str], Any] | None = None,
    ) -> None:
        self.uri = links.checked_uri(tracking_uri or links.default_uri(ledger_path.resolve().parent.parent))
        self._target = Target(ledger_path, self.uri, artifact_root, connect or client.connect)
        self._poll_s = poll_s
        self._first_wait_s = first_wait_s
        self._cursor = Cursor.load(ledger_path.parent, self.uri)
        self._report: Report | None = None
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-tracking", daemon=True)

    def start(self) -> Tracker:
        """Begin to follow. Returns at once; mlflow is imported in the thread, which takes seconds."""
        self._thread.start()
        return self

    def attach_report(self, files: Iterable[Path], front_keys: Iterable[str], verdict: str) -> None:
        """Attach the report's files to the parent run, tag the front's cells, put the verdict on the parent's page.

        Done by the thread once MLflow knows every event; `close` waits for it. front_keys: cell_keys.
        """
        self._report = Report(tuple(files), frozenset(front_keys), verdict)
        self._wake.set()

    def close(self, timeout_s: float = 60.0) -> int:
        """Let the thread catch up for at most `timeout_s`. Returns how much MLflow does not have: events, and the
        report as one more (0: all is told). `python -m sweeps.sync SWEEP_DIR` tells the rest later."""
        self._closing.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._abandoned.set()
        pending = sum(1 for _ in ledger.read(self._target.ledger_path, self._cursor.offset))
        return pending + (self._report is not None)

    @property
    def dead_letters(self) -> int:
        """Batches that MLflow refused for good; they lie in tracking.dead.jsonl."""
        return self._cursor.dead_letters

    def links(self) -> list[tuple[str, str]]:
        """(what it is, address or command), for people: how to open MLflow, and the sweep's pages in it."""
        return links.links(self.uri, self._cursor.experiment_id, self._cursor.run_id, self._cursor.sweep_id)

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self._follow()
        except AbandonedError:
            _log.info("MLflow at %s is behind; what is missing waits in the ledger.", safe_uri(self.uri))
        except Exception:
            _log.exception(
                "MLflow tracking ended by its own error; the sweep goes on, and sweeps.sync can tell the rest."
            )

    def _follow(self) -> None:
        wait_s, down = self._first_wait_s, False
        session: Session | None = None
        lock = self._lock()
        try:
            while True:
                try:
                    session = session or Session(self._target, self._cursor, self._abandoned)
                    # Asked before the ledger is read: what is appended between reading and closing is still to be told.
                    closing = self._closing.is_set()
                    caught_up = session.drain()
                    if caught_up and self._report is not None:
                        report = self._report
                        session.attach(report)
                        self._report = None if self._report is report else self._report
                    if down:
                        _log.warning("MLflow at %s answers again.", safe_uri(self.uri))
                    wait_s, down = self._first_wait_s, False
                    if caught_up:
                        if closing and self._report is None:
                            return
                        self._pause(self._poll_s)
                except (UnavailableError, RefusedError, OSError) as problem:
                    # Everything that is not acknowledged is told again by a new session, which first looks for the runs
                    # that a lost answer may have left behind. So it is if the cursor or a dead letter cannot be
                    # written (OSError), as on a full disk.
                    session = None
                    if not down:
                        _log.warning(
                            "MLflow at %s %s (%s); the sweep goes on, its events wait in the ledger.",
                            safe_uri(self.uri),
                            "cannot be followed" if isinstance(problem, OSError) else "does not answer",
                            problem,
                        )
                    down = True
                    self._pause(wait_s)
                    wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        finally:
            os.close(lock)

    def _pause(self, seconds: float) -> None:
        if self._closing.is_set():
            seconds = min(seconds, 1.0)
        self._wake.wait(seconds)
        self._wake.clear()
        if self._abandoned.is_set():
            raise AbandonedError

    def _lock(self) -> int:
        """One drainer a sweep: to look for a run and then create it is not one step."""
        lock = os.open(self._target.directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                self._pause(self._poll_s)


def is_tracked(sweep_dir: Path) -> bool:
    """Whether another process drains this sweep's ledger just now."""
    lock = os.open(sweep_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
