"""The report's cells and captions as text, the same for HTML and Markdown; escaping is the page's business."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from sweeps import query, timing
from sweeps.outcomes import Outcome
from sweeps.pareto import BOX
from sweeps.report.facts import Facts, LossRow
from sweeps.report.verdict import NOTABLE, percent, times
from sweeps.results import Configuration

NONE = "-"
ALIASES = ("catalog_size",)
"""Statistics that say another one again."""
TIMED = {
    timing.AGAIN: "taken again after the sweep, alone",
    timing.ALONE: "taken alone",
    timing.UNKNOWN: "on a part of a GPU that the ledger does not tell",
    timing.SHARED: "taken while sharing a GPU, or on a CPU the machine, with others",
}
"""How times were taken, behind a number of cells."""
TESTS = tuple(f"test/{name}_at_10" for name in ("ndcg", "hit_rate", "mrr", "coverage"))
"""Test metrics that the front's table shows, if there are any."""


def subtitle(facts: Facts) -> str:
    data = facts.sweep.plan.get("data", {})
    words = [f"Sweep {facts.sweep.name}", str(data["name"]) if data.get("name") else ""]
    words += [f"{sum(facts.counts.values())} cells", f"as of {moment(facts.sweep.span_ms[1])}"]
    return " · ".join(word for word in words if word)


def moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def caption(facts: Facts) -> str:
    text = (
        "Each mark is a configuration, its NDCG@10 the mean over seeds on validation, bars ± one standard deviation. "
        "A step line is what a loss reaches with at most so much memory; marks that another configuration of their "
        "loss beats are faint."
    )
    if facts.stopped:
        text += f" Hollow and faint: {len(facts.stopped)} cells stopped early, at their best value so far."
    return f"{text} x: {facts.axis.label}."


def loss_row(row: LossRow) -> list[str]:
    """cells, done, stopped, failed, not run, best, its test, its GiB, GiB at the baseline's quality, times less, on the
    front, hypervolume."""
    counts, best, saving = row.counts, row.best, row.saving
    total = sum(counts.values())
    done, stopped = counts[Outcome.DONE.value], counts[Outcome.STOPPED.value]
    return [
        *(str(count) for count in (total, done, stopped, row.failed, total - done - stopped - row.failed)),
        mean(best) if best else NONE,
        f"{best.test_quality:.4f}" if best and best.test_quality is not None else NONE,
        f"{best.memory_gib:.3g}" if best else NONE,
        f"{saving.candidate.memory_gib:.3g}" if saving else NONE,
        memory_against(saving.memory_ratio) if saving else NONE,
        str(row.on_front) if best else NONE,
        f"{row.hypervolume:.5f}" if row.hypervolume is not None else NONE,
    ]


def memory_against(ratio: float) -> str:
    """ratio: how many times less."""
    if 1 / NOTABLE < ratio < NOTABLE:
        return "same"
    return f"{times(ratio)} less" if ratio > 1 else f"{times(1 / ratio)} more"


def loss_header(facts: Facts) -> list[str]:
    """Names of `loss_row`'s columns."""
    base, part = facts.baseline, percent(1 - query.TOLERANCE)
    return [
        *("cells", "done", "stopped", "failed", "not run", "best on validation", "its test", "its GiB"),
        *(f"GiB for {part} of {base}", f"memory against {base}", "on the front", "hypervolume"),
    ]


def unplaced(facts: Facts) -> str:
    """A note on cells that the table by loss cannot count; empty if there are none."""
    count = sum(facts.counts.values()) - sum(sum(row.counts.values()) for row in facts.losses)
    if not count:
        return ""
    return f"{count} planned cell{'s have' if count > 1 else ' has'} not started: not counted in a line of this table."


def mean(c: Configuration) -> str:
    return f"{c.quality:.4f}" if c.quality_sd is None else f"{c.quality:.4f} ± {c.quality_sd:.4f}"


def seeds(c: Configuration) -> str:
    return str(c.n) if c.n == c.planned else f"{c.n} of {c.planned}"


def test_columns(front: Sequence[Configuration]) -> list[str]:
    """Those of TESTS that any of these has."""
    return [name for name in TESTS if any(name in c.test for c in front)]


def front_header(front: Sequence[Configuration]) -> list[str]:
    """Names of `front_row`'s columns."""
    return ["GiB", "NDCG@10 on validation", "seeds", "s an epoch", *map(metric, test_columns(front))]


def front_row(c: Configuration, tests: Sequence[str]) -> list[str]:
    values = (c.test.get(name) for name in tests)
    told = [f"{c.memory_gib:.3g}", mean(c), seeds(c), timing.seconds(c.epoch_s, c.timing)]
    return [*told, *(NONE if v is None else f"{v:.4f}" for v in values)]


def timed(facts: Facts) -> str:
    """How the cells' times were taken, with the marks of those shown; empty where nothing was timed."""
    kinds = [str(kind) for kind in facts.sweep.cells["timing"]]
    counts = [(kind, kinds.count(kind)) for kind in timing.BEST_FIRST if kind in kinds]
    if not counts:
        return ""
    total = sum(count for _, count in counts)
    told = "; ".join(f"{count} {TIMED[kind]}" for kind, count in counts)
    legend = timing.legend(c.timing for c in facts.configurations)
    return f"Times of {total} cells: {told}." + (f" Marks: {legend}." if legend else "")


def metric(name: str) -> str:
    """test/hit_rate_at_10 as people write it."""
    group, _, rest = name.partition("/")
    stem, _, k = rest.rpartition("_at_")
    stem = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "hit_rate": "HR"}.get(stem, stem.replace("_", " "))
    return f"{stem}@{k} on {group}"


def parameters(c: Configuration) -> str:
    shown = {key: value for key, value in c.parameters.items() if key != "loss.name"}
    words = (f"{key.removesuffix('.name').rpartition('.')[2]} {_plain(value)}" for key, value in shown.items())
    return ", ".join(words) or c.label


def last_line(reason: str) -> str:
    lines = reason.strip().splitlines()
    return lines[-1] if lines else "no reason on record"


def provenance(facts: Facts) -> list[tuple[str, str]]:
    """(what, value) of everything that the numbers depend on."""
    sweep, plan = facts.sweep, facts.sweep.plan
    data, environment = plan.get("data", {}), plan.get("environment", {})
    found = [("sweep", f"{sweep.name} ({sweep.sweep_id})")]
    if plan.get("description"):
        found.append(("about", str(plan["description"])))
    found.append(("run", f"{moment(sweep.span_ms[0])} to {moment(sweep.span_ms[1])}, {_launches(facts)}"))
    found += [
        (f"data: {key.removeprefix('n_').replace('_', ' ')}", f"{value:,}" if isinstance(value, int) else _plain(value))
        for key, value in data.items()
        if key not in ALIASES and isinstance(value, str | int | float)
    ]
    found += [(key.replace("_", " "), _plain(value)) for key, value in environment.items()]
    for key in ("scheduler", "objectives", "overrides"):
        if plan.get(key):
            found.append((key, _plain(plan[key])))
    if plan:
        found.append(("cells", f"{len(plan['cell_keys'])} planned, {facts.not_run} of them without an end"))
        left = [f"{plan.get('duplicates', 0)} duplicates", f"{plan.get('dropped', 0)} by constraints"]
        found.append(("left out of the plan", ", ".join(left)))
    found.append(("memory", facts.axis.label))
    found.append(("hypervolume", f"share of the box {BOX}; a point outside counts at the box's edge"))
    if timed(facts):
        found.append(("times", timed(facts)))
    if facts.deviation is not None:
        found.append(("noise", f"{facts.deviation:.5f}: standard deviation of one seed's NDCG@10, pooled"))
    return found


def _launches(facts: Facts) -> str:
    count = len(facts.sweep.plans)
    hosts = dict.fromkeys(str(plan.get("environment", {}).get("host", "")) for plan in facts.sweep.plans)
    where = ", ".join(host for host in hosts if host)
    state = {None: "not closed", "finished": "finished"}.get(facts.sweep.closed, f"ended: {facts.sweep.closed}")
    return f"{count} launch{'es' if count != 1 else ''}{' on ' + where if where else ''}, {state}"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
