"""A sweep whose results belong in a store (s3://...): its ledger is written on the driver's disk, for it needs append
and fsync, and mirrored to the store while it grows.

In the store, `<address>/<sweep>/` holds `ledger/<offset>.<lease>.jsonl`, pieces of the ledger that begin at these
bytes, written under these numbers of the lease; `report/`; and `checkpoints/`, which trials write (`sweeps.handover`).
A piece overwrites what lower numbers wrote from its offset on: a driver that lost its lease without knowing it cannot
spoil what its successor writes. No torch, no ray.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from seqrec import remote
from sweeps import lease
from sweeps.errors import LedgerBusy, LedgerError
from sweeps.lease import Lease
from sweeps.ledger import FILE_NAME
from sweeps.options import Options

POLL_S = 2.0
"""How old the mirror is at most, while the store answers."""
WAIT_STEP_S = 5.0
CLOSE_WAIT_S = 60.0
"""How long the end of a launch tries to reach a store that does not answer."""
PIECE_BYTES = 4 * 2**20
PIECE = re.compile(r"(\d{16})\.(\d{6})\.jsonl$")
SUBJECT = "--storage"
AGAIN = "hint: run the same command again on this machine once it answers."
TAKEN = "another driver has taken the sweep over, for this one was not heard of. hint: leave it to that one."

_log = logging.getLogger(__name__)


def local_folder(address: str) -> Path:
    """Where the driver keeps what it mirrors to this address."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", address).strip("-")[:60]
    return home / "seqrec-sweeps" / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def during(options: Options, name: str, work: Callable[[Mirror | None], int]) -> int:
    """Do the work of a launch, an exit code, with the mirror that its options ask for: the lease and the newest ledger
    before, the rest of the results after it. The exit code is 1 if those could not be brought.

    Raises UserError for a store that cannot be used, LedgerBusy, and LedgerError if store and disk contradict.
    """
    if options.mirror is None:
        return work(None)
    directory = options.storage.absolute() / name
    mirror = Mirror(options.mirror, name, directory, wait_s=60 * options.wait_minutes)
    try:
        code = work(mirror)
    finally:
        trouble = mirror.close()
        print(f"error: {trouble}" if trouble else f"in the store: {mirror.address}", file=sys.stderr)
    return code or int(bool(trouble))


class Mirror:
    """One sweep in a store, followed by a thread until `close`."""

    def __init__(
        self, address: str, name: str, directory: Path, *, wait_s: float = 0.0, poll_s: float = POLL_S
    ) -> None:
        self.address = f"{address}/{name}"
        self._directory = directory
        self._poll_s = poll_s
        self._system, root = remote.open_store(address, SUBJECT)
        self._folder = f"{root.rstrip('/')}/{name}"
        self._halt: Callable[[str], None] = lambda reason: None
        self._ended: deque[str] = deque()
        self._gone: set[str] = set()
        self._start = self._sent = 0
        """Bytes: where the last piece begins, and how far the store's ledger goes."""
        self._is_down = False
        self._closing = threading.Event()
        with remote.asking(address, SUBJECT):
            self._lease = self._take(wait_s)
            self._is_held = True
        try:
            with remote.asking(address, SUBJECT):
                there = self._read()
            self._begin(there)
        except BaseException:
            self._lease.give_back()
            raise
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def _take(self, wait_s: float) -> Lease:
        end, is_told = time.monotonic() + wait_s, False
        while True:
            try:
                written = max((number for _, number, _ in self._pieces()), default=0)
                return lease.take(self._system, self._folder, self.address, written)
            except LedgerBusy as busy:
                if time.monotonic() + WAIT_STEP_S > end:
                    raise
                if not is_told:
                    print(f"note: waiting up to {wait_s / 60:g} minutes: {busy}", file=sys.stderr)
                is_told = True
                time.sleep(WAIT_STEP_S)

    def attach(self, halt: Callable[[str], None]) -> None:
        """halt: called from the thread with the reason, if another driver takes the sweep over."""
        self._halt = halt

    def forget(self, cell_key: str) -> None:
        """A cell has ended: its checkpoints go, soon."""
        self._ended.append(cell_key)

    def close(self) -> str:
        """Bring the rest of the ledger and the report to the store and give the lease back; what is wrong, for people,
        or nothing. Tries for `CLOSE_WAIT_S`."""
        self._closing.set()
        self._thread.join()
        end = time.monotonic() + CLOSE_WAIT_S
        while self._is_held:
            try:
                self._finish()
                if self._is_held:
                    return ""
            except Exception as error:  # as in `remote.asking`
                if time.monotonic() > end:
                    kind = type(error).__name__
                    return f"{self.address}: does not answer ({kind}) and lacks the end of {self._ledger}. {AGAIN}"
                time.sleep(1.0)
        return f"{self.address}: {TAKEN}"

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        renewed = time.monotonic()
        while not self._closing.wait(self._poll_s):
            try:
                if time.monotonic() - renewed >= lease.RENEW_S:
                    self._is_held = self._lease.renew()
                    renewed = time.monotonic()
                if not self._is_held:
                    self._halt(f"{self.address}: {TAKEN}")
                    return
                self._send()
                self._delete()
                if self._is_down:
                    _log.warning("%s answers again.", self.address)
                self._is_down = False
            except Exception as error:  # as in `remote.asking`
                if not self._is_down:
                    text = "%s does not answer (%s); the sweep goes on, its events wait on the driver's disk."
                    _log.warning(text, self.address, type(error).__name__)
                self._is_down = True

    def _send(self) -> None:
        """The ledger's whole lines that the store does not have: the last piece anew, until it is full."""
        if not self._ledger.exists():
            return
        with self._ledger.open("rb") as file:
            while True:
                file.seek(self._start)
                content = file.read(PIECE_BYTES)
                is_full = len(content) == PIECE_BYTES
                content += file.readline() if is_full else b""
                content = content[: content.rfind(b"\n") + 1]
                end = self._start + len(content)
                if end > self._sent:
                    name = f"{self._start:016d}.{self._lease.number:06d}.jsonl"
                    self._system.pipe_file(f"{self._folder}/ledger/{name}", content)
                    self._sent = end
                if not is_full or not content:
                    return
                self._start = end

    def _delete(self) -> None:
        """Checkpoints of cells that ended."""
        while self._ended:
            for path in self._system.find(f"{self._folder}/checkpoints/{self._ended[0]}"):
                self._system.rm_file(path)
            self._gone.add(self._ended.popleft())

    def _finish(self) -> None:
        if not self._lease.renew():
            self._is_held = False
            return
        self._send()
        self._delete()
        for path in self._system.find(f"{self._folder}/checkpoints"):
            if str(path).split("/")[-2] in self._gone:  # a trial brought it after its end was known
                self._system.rm_file(path)
        for report in sorted((self._directory / "report").glob("*")):
            self._system.put_file(str(report), f"{self._folder}/report/{report.name}")
        self._lease.give_back()

    # --------------------------------------------------------------------------------------------------- the start

    def _pieces(self) -> list[tuple[int, int, str]]:
        """(offset, number of the lease, path), in the order in which they were begun."""
        found = [(PIECE.search(path), path) for path in map(str, self._system.find(f"{self._folder}/ledger"))]
        pieces = [(int(match[1]), int(match[2]), path) for match, path in found if match]
        return sorted(pieces, key=lambda piece: (piece[1], piece[0]))

    def _read(self) -> bytes:
        """The ledger as the store has it. Raises LedgerError if a piece is missing."""
        content = b""
        for offset, _, path in self._pieces():
            if offset > len(content):
                raise LedgerError(f"{self.address}/ledger: got nothing at byte {len(content)}; expected a piece there.")
            content = content[:offset] + self._system.cat_file(path)
        return content

    def _begin(self, there: bytes) -> None:
        """Make disk and store one: whichever is longer, if it begins as the other. Raises LedgerError if not."""
        here = self._ledger.read_bytes() if self._ledger.exists() else b""
        here = here[: here.rfind(b"\n") + 1]  # what a crash tore is cut off by the next writer
        if not (here.startswith(there) or there.startswith(here)):
            number = next(i for i, (one, two) in enumerate(zip(here, there, strict=False)) if one != two)
            line = here[:number].count(b"\n") + 1
            raise LedgerError(
                f"{self._ledger} and {self.address}: contradict each other from line {line} on. hint: two drivers "
                f"wrote apart from each other; move {self._directory} away to go on with what the store has."
            )
        if len(there) > len(here):
            self._directory.mkdir(parents=True, exist_ok=True)
            fresh = self._ledger.with_suffix(".fetched")
            with fresh.open("wb") as file:
                file.write(there)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._ledger)
        self._start = self._sent = len(there)

    @property
    def _ledger(self) -> Path:
        return self._directory / FILE_NAME
