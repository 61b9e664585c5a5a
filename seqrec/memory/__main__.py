"""python -m seqrec.memory: where the memory of a train step goes, predicted, and measured on a CUDA device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from seqrec.errors import UserError, message
from seqrec.memory import output, synthetic
from seqrec.memory.cases import Case, cases
from seqrec.memory.output import Row


def main(arguments: Sequence[str] | None = None) -> int:
    """The table, or JSON, to stdout; progress to stderr. Exit code 2: a mistake in the arguments or the data."""
    options = _parser().parse_args(arguments)
    try:
        if options.plot is not None and options.plot.suffix != ".png":
            raise UserError(message("--plot", str(options.plot), "a file whose name ends in .png"))
        for option, path in (("--csv", options.csv), ("--plot", options.plot)):
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                raise UserError(message(option, str(path), "a file in a folder that exists"))
        found = cases(
            losses=options.loss,
            model=options.model,
            batch_sizes=options.batch_size,
            catalog_sizes=options.catalog_size,
            users=options.users,
            length_mean=options.length_mean,
            data_path=options.data,
            assignments=options.set,
        )
        device, reason = (None, "--predict") if options.predict else _device()
        rows = [_row(case, device) for case in found]
        head = output.headline(device, reason)
        if options.csv is not None:
            output.write_csv(rows, options.csv)
        if options.plot is not None:
            from seqrec.memory import plot

            plot.draw(rows, options.plot, head)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: cannot be written ({error.strerror}).", file=sys.stderr)
        return 2
    print(output.as_json(rows, device) if options.json else f"{head}\n\n{output.table(rows)}")
    return 0


def _device() -> tuple[str | None, str]:
    """Name of the CUDA device to measure on; None, and why there is none."""
    import torch  # the closed forms do without it

    if not torch.cuda.is_available():
        return None, "no CUDA device"
    return torch.cuda.get_device_name(), ""


def _row(case: Case, device: str | None) -> Row:
    predicted = case.predict()
    if device is None:
        return Row(case, predicted, None)
    import torch

    from seqrec.memory import measure

    size = case.run.train.batch_size
    print(f"measuring {case.loss}, batch {size}, {case.statistics.n_items:,} items", file=sys.stderr, flush=True)
    split = case.split or synthetic.split(case.statistics)
    measured = measure.measure(case.run, split, torch.device("cuda"), reference_ce=case.reference_ce)
    return Row(case, predicted, measured)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m seqrec.memory",
        description="Where the memory of one train step goes: components of every loss x batch size x catalog, "
        "predicted in closed form and measured where there is a CUDA device. docs/memory.md says what is counted.",
    )
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128], metavar="B", help="default 128")
    parser.add_argument("--catalog-size", type=int, nargs="+", default=[], metavar="V", help="items, synthetic data")
    parser.add_argument("--data", metavar="NAME", help="a bundled set or canonical parquet file, instead")
    parser.add_argument(
        "--loss", nargs="+", default=["ce"], metavar="NAME", help="default ce; reference_ce is the published code's"
    )
    parser.add_argument("--model", default="sasrec", metavar="NAME", help="default sasrec")
    parser.add_argument("--users", type=int, metavar="U", help="synthetic users; default: one batch")
    parser.add_argument(
        "--length-mean", type=float, metavar="M", help="their mean history; default: all fill model.max_length"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the run: --set loss.n_negatives=256 --set model.hidden_size=128",
    )
    parser.add_argument("--predict", action="store_true", help="measure nothing; loads no torch")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the components, in bytes")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw what is alive at the peak")
    return parser


if __name__ == "__main__":
    sys.exit(main())
