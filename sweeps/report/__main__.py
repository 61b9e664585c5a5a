"""`python -m sweeps.report SWEEP_DIR`: write the report anew from the ledger, while a sweep runs or after it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from seqrec.errors import UserError
from sweeps.report import write


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sweeps.report", description="Write a sweep's Pareto report.")
    parser.add_argument("sweep_dir", type=Path, help="directory that holds ledger.jsonl")
    try:
        report = write(parser.parse_args(arguments).sweep_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.verdict)
    print(report.html)
    return 0


if __name__ == "__main__":
    sys.exit(main())
