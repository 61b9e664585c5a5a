"""One driver a sweep: a lock on a file of its folder."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from sweeps.errors import LedgerBusy, LedgerError


def take(path: Path) -> int:
    """An open, locked file descriptor; the lock goes with the process, however it ends."""
    lock = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 4096, 0).decode(errors="replace").strip() or "an unknown process"
        os.close(lock)
        raise LedgerBusy(
            f"{path.parent}: is in use by another driver ({holder}). hint: wait for it, or choose another storage."
        ) from None
    except OSError as error:
        if lock >= 0:
            os.close(lock)
        raise LedgerError(f"{path}: cannot be locked ({error.strerror}).") from error
    return lock
