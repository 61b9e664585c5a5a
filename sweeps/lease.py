"""One driver a sweep in a store that has no locks: a lease that its holder renews, taken over when it falls silent.

Leases are numbered objects, `lease/000001`. Number n + 1 is made by a put that fails if the object exists, so that of
two takers one gets it; whoever has a lower number has lost. Silence is measured by the store's own clock: the ages of
the lease and of an object made just now. No torch, no ray.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.errors import LedgerBusy

EXPIRY_S = 300.0
"""Silence after which a holder counts as dead."""
RENEW_S = 30.0


@dataclass(frozen=True)
class Lease:
    """Held until `give_back`, or until `is_held` says that another driver took it over."""

    system: Any
    folder: str
    number: int

    @property
    def path(self) -> str:
        return _path(self.folder, self.number)

    def renew(self) -> bool:
        """Tell the others that this holder lives; False if it has lost the lease, which it then no longer keeps."""
        if self.is_held():
            self.system.pipe_file(self.path, _card())
            # Who took it over in between did not see this put, and looks at no lower number again.
            if self.is_held():
                return True
        self._remove()
        return False

    def is_held(self) -> bool:
        return max(_numbers(self.system, self.folder), default=0) <= self.number

    def give_back(self) -> None:
        self._remove()

    def _remove(self) -> None:
        _remove(self.system, self.path)


def take(system: Any, folder: str, told: str, written: int = 0) -> Lease:
    """The lease of a sweep's folder. written: highest number that anything in the folder was written under. told: the
    folder's address for people. Raises LedgerBusy if another driver has it and is, as far as one can see, alive."""
    held = _numbers(system, folder)
    if held:
        path = _path(folder, held[-1])
        try:
            holder = json.loads(system.cat_file(path))
            silence = _silence(system, folder, path)
        except FileNotFoundError:  # given back just now
            pass
        else:
            if silence < EXPIRY_S and not _is_dead(holder):
                raise LedgerBusy(
                    f"{told}: is in use by another driver (pid {holder['pid']} on {holder['host']}, heard of "
                    f"{silence:.0f} s ago). hint: wait for it; after {EXPIRY_S:.0f} s of silence it is taken over."
                )
    lease = Lease(system, folder, max([written, *held]) + 1)
    try:
        system.pipe_file(lease.path, _card(), mode="create")
    except FileExistsError:
        raise LedgerBusy(f"{told}: another driver has just taken it. hint: wait for it.") from None
    for number in held:
        _remove(system, _path(folder, number))
    return lease


def _card() -> bytes:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "place": _place()}).encode()


def _place() -> str:
    """Where this process's number means this process: a start of the machine, and in it a space of numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder ran where this process runs, and its process is gone: nobody need wait then."""
    if not holder["place"] or holder["place"] != _place():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _silence(system: Any, folder: str, path: str) -> float:
    """Seconds since the object was written, by the store's clock."""
    probe = f"{folder}/lease/probe-{uuid.uuid4().hex}"
    system.pipe_file(probe, b"now")
    try:
        return float((system.modified(probe) - system.modified(path)).total_seconds())
    finally:
        _remove(system, probe)


def _numbers(system: Any, folder: str) -> list[int]:
    names = (str(path).rpartition("/")[2] for path in system.find(f"{folder}/lease"))
    return sorted(int(name) for name in names if name.isdecimal())


def _path(folder: str, number: int) -> str:
    return f"{folder}/lease/{number:06d}"


def _remove(system: Any, path: str) -> None:
    with suppress(FileNotFoundError):
        system.rm_file(path)
