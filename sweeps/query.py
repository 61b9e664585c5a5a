"""Questions to a sweep: the best under a memory limit, the same quality at less memory.

`python -m sweeps.query SWEEP_DIR [--max-memory-gib X]`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seqrec.errors import UserError, message
from sweeps import pareto, results, timing
from sweeps.results import Configuration

BASELINE = "ce"
TOLERANCE = 0.05
"""Same quality: at least 1 - TOLERANCE of the baseline's best validation NDCG@10."""


@dataclass(frozen=True)
class Saving:
    """The cheapest configuration of a loss that reaches a baseline's quality, against the baseline's own cheapest."""

    baseline_best: Configuration
    """Best of the baseline by validation: sets the quality to reach."""
    baseline: Configuration
    """The baseline's least memory that still reaches it: what the saving is counted from, so that no loss is credited
    with what a smaller model of the baseline would save as well."""
    candidate: Configuration

    @property
    def memory_ratio(self) -> float:
        """How many times less memory: above 1 is a saving."""
        return self.baseline.memory_gib / self.candidate.memory_gib

    @property
    def on_test(self) -> bool:
        """Whether `quality_ratio` compares test values."""
        return bool(self.candidate.test_quality is not None and self.baseline_best.test_quality)

    @property
    def quality_ratio(self) -> float:
        """NDCG@10 of the candidate over the best of the baseline: on test if both have it, else on validation."""
        if self.candidate.test_quality is not None and self.baseline_best.test_quality:
            return self.candidate.test_quality / self.baseline_best.test_quality
        return self.candidate.quality / self.baseline_best.quality


def best(configurations: Sequence[Configuration]) -> Configuration | None:
    """Highest validation quality; of equals the one with less memory."""
    return max(configurations, key=lambda c: (c.quality, -c.memory_gib), default=None)


def best_under(configurations: Sequence[Configuration], max_memory_gib: float) -> Configuration | None:
    """Best by validation among those that need at most `max_memory_gib`; None if none does."""
    return best([c for c in configurations if c.memory_gib <= max_memory_gib])


def cheapest_reaching(configurations: Sequence[Configuration], quality: float) -> Configuration | None:
    """Least memory among those with at least this validation quality; None if none has it."""
    reaching = [c for c in configurations if c.quality >= quality]
    return min(reaching, key=lambda c: (c.memory_gib, -c.quality), default=None)


def savings(
    configurations: Sequence[Configuration], baseline: str = BASELINE, tolerance: float = TOLERANCE
) -> dict[str, Saving]:
    """For every loss that reaches the baseline's quality, itself among them, its cheapest way to do so. Empty without a
    complete configuration of the baseline."""
    groups = pareto.by_loss(configurations)
    top = best(groups.get(baseline, ()))
    if top is None:
        return {}
    target = (1 - tolerance) * top.quality
    reference = cheapest_reaching(groups[baseline], target) or top
    found = {loss: cheapest_reaching(group, target) for loss, group in groups.items()}
    return {loss: Saving(top, reference, one) for loss, one in found.items() if one is not None}


def _print_savings(configurations: Sequence[Configuration], baseline: str, tolerance: float) -> None:
    found = savings(configurations, baseline, tolerance)
    print(f"least memory at {1 - tolerance:.0%} or more of {baseline}'s best validation NDCG@10:")
    for saving in sorted(found.values(), key=lambda s: s.candidate.memory_gib):
        c = saving.candidate
        kind = "test" if saving.on_test else "valid"
        print(
            f"  {c.loss:10} {c.memory_gib:8.3g} GiB  {saving.memory_ratio:5.1f}x less  "
            f"{kind} NDCG@10 {saving.quality_ratio:.0%} of the best {baseline}  "
            f"{timing.seconds(c.epoch_s, c.timing)} s/epoch  {c.label}"
        )
    for loss in pareto.by_loss(configurations):
        if loss not in found:
            print(f"  {loss:10} does not reach it")
    if marks := timing.legend(saving.candidate.timing for saving in found.values()):
        print(marks)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.query",
        description="The best configuration under a memory limit; without a limit, "
        "each loss's least memory at the same quality.",
    )
    parser.add_argument("sweep_dir", type=Path, help="directory that holds ledger.jsonl")
    parser.add_argument("--max-memory-gib", type=float, metavar="X", help="print the best that needs at most X")
    parser.add_argument("--loss", metavar="NAMES", help="among these losses only, comma-separated")
    parser.add_argument(
        "--baseline", default=BASELINE, metavar="NAME", help=f"loss to compare with (default {BASELINE})"
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="T", help="same quality: 1 - T of it or more"
    )
    options = parser.parse_args(arguments)
    try:
        sweep = results.load(options.sweep_dir)
        configurations = pareto.select_losses(results.configurations(sweep.cells), options.loss)
        if not configurations:
            raise UserError(f"{options.sweep_dir}: has no complete cell yet; expected at least one.")
        if options.max_memory_gib is not None:
            found = best_under(configurations, options.max_memory_gib)
            if found is None:
                least = min(c.memory_gib for c in configurations)
                law = f"at least {least:.4g}, the least of any complete configuration"
                raise UserError(message("--max-memory-gib", options.max_memory_gib, law))
            print(json.dumps(pareto.as_json(found), indent=2, allow_nan=False))
            return 0
        if not 0 <= options.tolerance < 1:
            raise UserError(message("--tolerance", options.tolerance, "a number in [0, 1)"))
        if options.baseline not in pareto.by_loss(configurations):
            known = ", ".join(pareto.by_loss(configurations))
            raise UserError(message("--baseline", options.baseline, f"a loss with a complete cell ({known})"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print_savings(configurations, options.baseline, options.tolerance)
    print(f"memory: {results.memory_axis(sweep.cells).label}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
