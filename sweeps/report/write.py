"""Write the report's files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sweeps import pareto, results
from sweeps.report.facts import Facts, gather
from sweeps.report.page import html
from sweeps.report.picture import draw
from sweeps.report.plain import markdown


@dataclass(frozen=True)
class Report:
    """Where the report lies, and what others tell of it."""

    html: Path
    png: Path
    csv: Path
    """Every cell of the plan."""
    front_csv: Path
    markdown: Path
    json: Path
    """The front."""
    verdict: str
    front_keys: tuple[str, ...]
    """cell_key of every replicate on the front."""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.html, self.png, self.csv, self.front_csv, self.markdown, self.json)


def write(sweep_dir: Path) -> Report:
    """Write <sweep_dir>/report/ from the ledger: at any time, for a finished sweep or the beginnings of one.

    Raises UserError if the directory has no ledger.
    """
    sweep = results.load(sweep_dir)
    facts = gather(sweep)
    directory = sweep_dir / "report"
    directory.mkdir(exist_ok=True)
    report = Report(
        html=directory / "pareto.html",
        png=directory / "pareto.png",
        csv=directory / "cells.csv",
        front_csv=directory / "front.csv",
        markdown=directory / "report.md",
        json=directory / "front.json",
        verdict=facts.verdict.sentence,
        front_keys=tuple(key for c in facts.front for key in c.cell_keys),
    )
    report.html.write_text(html(facts), encoding="utf-8")
    draw(facts, report.png)
    sweep.cells.to_csv(report.csv, index=False, lineterminator="\n")
    with report.front_csv.open("w", encoding="utf-8", newline="") as file:
        pareto.write_csv(facts.front, file)
    report.markdown.write_text(markdown(facts), encoding="utf-8")
    report.json.write_text(json.dumps(_front(facts), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return report


def _front(facts: Facts) -> dict[str, object]:
    return {
        "verdict": facts.verdict.sentence,
        "notes": list(facts.verdict.notes),
        "cells": dict(facts.counts),
        **pareto.summary(facts.sweep, facts.configurations),
        "near_front": [pareto.as_json(c) for c in facts.near],
    }
