"""The report as one HTML file: style, plotly and data inside, nothing to fetch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from sweeps.pareto import BOX, hypervolume
from sweeps.report import words
from sweeps.report.facts import Facts, Failures
from sweeps.report.figure import figure
from sweeps.report.style import style
from sweeps.results import Configuration

MOST_LISTED = 50
"""Failed cells that a group lists by name."""


def html(facts: Facts) -> str:
    """The whole page."""
    assets = resources.files("sweeps") / "assets"
    parts = {
        "title": escape(f"{facts.sweep.name}: memory against NDCG@10"),
        "body": _body(facts),
        "figure": _embedded(figure(facts)),
        "plotly": (assets / "plotly-basic.min.js").read_text(encoding="utf-8"),
    }
    head, *rest = (assets / "report.html").read_text(encoding="utf-8").split("{{")
    # By position rather than by replacing: no text that was put in is ever searched again.
    pieces = [head]
    for piece in rest:
        name, _, tail = piece.partition("}}")
        pieces += [parts[name], tail]
    return "".join(pieces)


def _embedded(tree: object) -> str:
    """JSON inside a script element: nothing in it may close the element or open a comment."""
    return json.dumps(tree, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _body(facts: Facts) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in facts.verdict.notes)
    parts = [
        f'<p class="kicker">{escape(words.subtitle(facts))}</p>',
        f"<h1>{escape(facts.verdict.sentence)}</h1>",
        f'<ul class="notes">{notes}</ul>' if notes else "",
        _figure(facts),
        _losses(facts),
        _front(facts),
        _failures(facts.failures),
        _provenance(facts),
    ]
    return "\n".join(part for part in parts if part)


def _figure(facts: Facts) -> str:
    if not facts.configurations and not facts.stopped:
        return ""
    return (
        '<figure><div id="figure" role="img" aria-label="Scatter of memory against NDCG@10, a step line for each '
        f"loss's front\"></div><figcaption>{escape(words.caption(facts))}</figcaption></figure>"
    )


def _losses(facts: Facts) -> str:
    if not facts.losses:
        return ""
    header = ["loss", *(f"#{name}" for name in words.loss_header(facts))]
    rows = []
    for row in facts.losses:
        cells = words.loss_row(row)
        rows.append([_loss(row.loss), *(escape(cell) for cell in cells)])
    note = words.unplaced(facts)
    return "<h2>Losses</h2>" + _table(header, rows) + (f'<p class="small">{escape(note)}</p>' if note else "")


def _front(facts: Facts) -> str:
    if not facts.front:
        return ""
    tests = words.test_columns(facts.front)
    header = ["loss", *(f"#{name}" for name in words.front_header(facts.front)), "parameters"]
    rows = [
        [_loss(c.loss), *(escape(cell) for cell in words.front_row(c, tests)), escape(words.parameters(c))]
        for c in facts.front
    ]
    text = "<h2>The front</h2>" + _table(header, rows, last_is_words=True)
    text += f'<p class="small">Hypervolume {hypervolume(facts.configurations):.4g} of the box {escape(str(BOX))}.</p>'
    text += f'<p class="small">{escape(words.timed(facts))}</p>' if words.timed(facts) else ""
    if facts.near:
        items = "".join(f"<li>{escape(_near(c))}</li>" for c in facts.near)
        text += (
            f"<details><summary>{len(facts.near)} more within two standard errors of the front</summary>"
            f'<ul class="notes">{items}</ul></details>'
        )
    return text


def _near(c: Configuration) -> str:
    return f"{c.label}: {c.quality:.4f} at {c.memory_gib:.3g} GiB"


def _failures(groups: Sequence[Failures]) -> str:
    if not groups:
        return ""
    rows = []
    for group in groups:
        listed = "\n".join(f"{label}\n    {reason}" for label, reason in group.cells[:MOST_LISTED])
        more = f"\n... and {len(group.cells) - MOST_LISTED} more" if len(group.cells) > MOST_LISTED else ""
        reason = words.last_line(group.cells[0][1])
        detail = f"<details><summary>{escape(reason)}</summary><pre>{escape(listed + more)}</pre></details>"
        rows.append([_loss(group.loss), escape(group.outcome), str(len(group.cells)), detail])
    return "<h2>Failures</h2>" + _table(["loss", "outcome", "#cells", "reason of the first"], rows, last_is_words=True)


def _provenance(facts: Facts) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in words.provenance(facts))
    spec = facts.sweep.plan.get("spec", "")
    text = f"<h2>Where this comes from</h2><dl>{items}</dl>"
    if spec:
        text += f"<details><summary>the search space</summary><pre>{escape(spec)}</pre></details>"
    return text


def _loss(loss: str) -> str:
    return f'<span class="loss"><span class="dot" style="background:{style(loss).color}"></span>{escape(loss)}</span>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, last_is_words: bool = False) -> str:
    """header: `#` before a name makes a column of numbers. Cells are HTML already."""
    numeric = [name.startswith("#") for name in header]
    kinds = [' class="n"' if number else "" for number in numeric]
    heads = "".join(f"<th{kind}>{escape(name.lstrip('#'))}</th>" for kind, name in zip(kinds, header, strict=True))
    if last_is_words:
        kinds[-1] = ' class="words"'
    lines = (
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
