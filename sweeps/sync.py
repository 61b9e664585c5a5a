"""`python -m sweeps.sync SWEEP_DIR`: tell MLflow, after the fact, what it does not have of a sweep.

For a sweep that ran without a connection, whose server was down at the end, or whose store was lost. Exit codes: 0
MLflow has everything; 1 it could not be reached in time, or refused something; 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from seqrec.errors import UserError, message
from sweeps import ledger, report
from sweeps.errors import LedgerBusy
from sweeps.tracking import DEAD_LETTERS, Tracker, is_tracked

TIMEOUT_S = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sweeps.sync", description="Tell MLflow what it lacks of a sweep.")
    parser.add_argument("sweep_dir", type=Path, help="directory that holds ledger.jsonl")
    parser.add_argument("--tracking-uri", metavar="URI", help="of MLflow; default: SQLite beside the sweep's directory")
    parser.add_argument(
        "--timeout-s", type=float, default=TIMEOUT_S, metavar="S", help=f"give up after S seconds ({TIMEOUT_S:.0f})"
    )
    options = parser.parse_args(arguments)
    try:
        return _sync(options.sweep_dir, options.tracking_uri, options.timeout_s)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _sync(sweep_dir: Path, tracking_uri: str | None, timeout_s: float) -> int:
    if not timeout_s > 0:
        raise UserError(message("--timeout-s", timeout_s, "a number > 0"))
    path = sweep_dir / ledger.FILE_NAME
    if not path.is_file():
        raise UserError(f"{sweep_dir}: has no {ledger.FILE_NAME}; expected the directory of a sweep.")
    if is_tracked(sweep_dir):
        raise LedgerBusy(f"{sweep_dir}: its driver, or another sync, tells MLflow just now. hint: wait for it.")
    tracker = Tracker(path, tracking_uri).start()
    written = report.write(sweep_dir)
    tracker.attach_report(written.files, written.front_keys, written.verdict)
    pending = tracker.close(timeout_s)
    for name, link in tracker.links():
        print(f"{name}: {link}")
    if pending:
        print(f"error: MLflow still lacks {pending} events; run the same command again.", file=sys.stderr)
    if tracker.dead_letters:
        print(f"error: MLflow refused {tracker.dead_letters} batches: {sweep_dir / DEAD_LETTERS}.", file=sys.stderr)
    return 1 if pending or tracker.dead_letters else 0


if __name__ == "__main__":
    sys.exit(main())
