"""The report's first sentence: what a reader takes home, in words that claim no more than the numbers do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps import pareto, query
from sweeps.outcomes import Outcome
from sweeps.query import Saving
from sweeps.results import Axis, Configuration

NOTABLE = 1.05
"""A saving below this factor is none."""


@dataclass(frozen=True)
class Verdict:
    sentence: str
    notes: tuple[str, ...]
    """What the sentence rests on, one sentence each: the rule, the seeds, the memory, what is missing."""


def verdict(
    configurations: Sequence[Configuration],
    savings: Mapping[str, Saving],
    baseline: str,
    axis: Axis,
    counts: Counter[str],
) -> Verdict:
    """counts: planned cells by outcome."""
    if not configurations:
        return Verdict(_nothing(counts), ())
    groups = pareto.by_loss(configurations)
    best = query.best(groups[baseline])
    assert best is not None, "a loss in groups has a configuration"
    rivals = [s for loss, s in savings.items() if loss != baseline and s.memory_ratio >= NOTABLE]
    winner = max(rivals, key=lambda s: s.memory_ratio, default=None)
    if winner:
        loss, less = winner.candidate.loss, times(winner.memory_ratio)
        sentence = f"{loss} reaches {percent(winner.quality_ratio)} of {baseline}'s NDCG@10 with {less} less memory."
        compared = [winner.candidate, winner.baseline_best]
        notes = [_rule(winner)]
    else:
        sentence, compared = _no_saving(groups, best, savings)
        notes = []
    if baseline != query.BASELINE and len(groups) > 1:
        notes.append(f"{query.BASELINE} has no complete cell; {baseline}, which has the best one, stands in for it.")
    notes.append(_seeds(compared, configurations))
    if not axis.measured:
        notes.append("Memory is the closed-form prediction of the train step, the same law for every loss.")
    if any(c.test_quality is None for c in compared):
        notes.append("The values are of validation: not every compared cell has test values.")
    notes += [*_stopped(counts), *_unfinished(counts)]
    return Verdict(sentence, tuple(notes))


def _nothing(counts: Counter[str]) -> str:
    total = sum(counts.values())
    if not total:
        return "No cell is planned yet: there is no front to show."
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    open_cells = any(outcome not in set(Outcome) or not Outcome(outcome).is_terminal for outcome in counts)
    when = "is complete yet" if open_cells else "was completed"
    return f"No cell {when} ({total} planned: {told}): there is no front to show."


def _no_saving(
    groups: Mapping[str, Sequence[Configuration]], best: Configuration, savings: Mapping[str, Saving]
) -> tuple[str, list[Configuration]]:
    kind = "validation" if best.test_quality is None else "test"
    shown = f"NDCG@10 {quality(best)} on {kind} at {gib(best.memory_gib)} GiB"
    others = [c for loss, group in groups.items() if loss != best.loss for c in group]
    if not others:
        return f"{best.loss} is the only loss with a complete cell; its best configuration reaches {shown}.", [best]
    own = savings[best.loss].baseline
    near = max((c for c in others if c.memory_gib * NOTABLE <= own.memory_gib), key=lambda c: c.quality, default=None)
    if near is None:
        better = query.best([c for c in others if c.quality > best.quality])
        if better is None:
            sentence = f"No other loss needs less memory than {best.loss}, whose best configuration reaches {shown}."
            return sentence, [best]
        part = Saving(best, own, better)
        return (
            f"No other loss needs less memory than {best.loss}; the best of them, {better.loss}, reaches "
            f"{percent(part.quality_ratio)} of its NDCG@10 with {times(1 / part.memory_ratio)} more.",
            [better, best],
        )
    part = Saving(best, own, near)
    return (
        f"No other loss comes within {percent(query.TOLERANCE)} of {best.loss}'s NDCG@10 with less memory; the "
        f"nearest, {near.loss}, reaches {percent(part.quality_ratio)} of it with {times(part.memory_ratio)} less.",
        [near, best],
    )


def _rule(saving: Saving) -> str:
    base, one = saving.baseline_best, saving.candidate
    kind = "test" if saving.on_test else "validation"
    values = [c.test_quality if saving.on_test else c.quality for c in (one, base)]
    reached, best = (f"{value:.4f}" for value in values)
    return (
        f"Of each loss's configurations with at least {percent(1 - query.TOLERANCE)} of the best {base.loss} on "
        f"validation ({base.quality:.4f}), the one of least memory: {one.label}, {gib(one.memory_gib)} GiB, against "
        f"{saving.baseline.label}, {gib(saving.baseline.memory_gib)} GiB; NDCG@10 on {kind} is {reached} against "
        f"{best} of the best {base.loss}."
    )


def _seeds(compared: Sequence[Configuration], configurations: Sequence[Configuration]) -> str:
    least = min(c.n for c in compared)
    deviation = pareto.pooled_deviation(configurations)
    if deviation is None:
        return "One seed a configuration: differences of a few per cent may be noise."
    spread = f"a single seed's NDCG@10 varies by {deviation:.4f} (standard deviation, pooled over all configurations)"
    if least == 1:
        return f"Not all that is compared has several seeds: differences of a few per cent may be noise; {spread}."
    return f"Means over {least} seeds or more; {spread}."


def _stopped(counts: Counter[str]) -> list[str]:
    stopped, total = counts[Outcome.STOPPED], sum(counts.values())
    if not stopped:
        return []
    return [
        f"{stopped} of {total} cells were stopped early, or not begun, by the sweep's rule: a loss's best is that of "
        "the cells that ran to their end, not all that it can reach."
    ]


def _unfinished(counts: Counter[str]) -> list[str]:
    total = sum(counts.values())
    left = sum(n for outcome, n in counts.items() if outcome not in set(Outcome) or not Outcome(outcome).is_terminal)
    return [f"So far: {left} of {total} planned cells have not ended."] if left else []


def percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"


def times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def gib(value: float) -> str:
    return f"{value:.3g}"


def quality(configuration: Configuration) -> str:
    """On test if known, else on validation."""
    value = configuration.test_quality
    return f"{configuration.quality if value is None else value:.4f}"
