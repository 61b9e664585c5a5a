"""The report as Markdown, for a README, an issue or a mail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sweeps.pareto import BOX, hypervolume
from sweeps.report import words
from sweeps.report.facts import Facts


def markdown(facts: Facts) -> str:
    """The whole text; links the picture that lies beside it."""
    parts = [f"# {_text(facts.sweep.name)}", _text(words.subtitle(facts)), f"**{_text(facts.verdict.sentence)}**"]
    if facts.verdict.notes:
        parts.append("\n".join(f"* {_text(note)}" for note in facts.verdict.notes))
    if facts.configurations or facts.stopped:
        parts.append("![memory against NDCG@10](pareto.png)")
        parts.append(_text(words.caption(facts)))
    if facts.losses:
        rows = [[row.loss, *words.loss_row(row)] for row in facts.losses]
        parts += ["## Losses", _table(["loss", *words.loss_header(facts)], rows)]
        if words.unplaced(facts):
            parts.append(words.unplaced(facts))
    if facts.front:
        tests = words.test_columns(facts.front)
        header = ["loss", *words.front_header(facts.front), "parameters"]
        rows = [[c.loss, *words.front_row(c, tests), words.parameters(c)] for c in facts.front]
        parts += ["## The front", _table(header, rows)]
        parts.append(f"Hypervolume {hypervolume(facts.configurations):.4g} of the box {BOX}.")
        if words.timed(facts):
            parts.append(_text(words.timed(facts)))
    if facts.failures:
        rows = [[g.loss, g.outcome, str(len(g.cells)), words.last_line(g.cells[0][1])] for g in facts.failures]
        parts += ["## Failures", _table(["loss", "outcome", "cells", "reason of the first"], rows)]
    lines = [f"* {_text(name)}: {_text(value)}" for name, value in words.provenance(facts)]
    parts += ["## Where this comes from", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_text(cell) for cell in line) + " |" for line in lines)


def _text(value: str) -> str:
    """On one line, and nothing in it that Markdown or HTML would act on."""
    for mark, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("*", "\\*")):
        value = value.replace(mark, instead)
    return " ".join(value.split())
