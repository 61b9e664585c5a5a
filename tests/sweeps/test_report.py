"""The report: what its first sentence may claim, and that its page needs nothing and leaks nothing."""

from __future__ import annotations

import csv
import html.parser
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sweeps import query, report, results
from sweeps.report.__main__ import main
from sweeps.report.facts import gather
from sweeps.report.figure import figure
from sweeps.report.style import STYLES, memory_ticks
from sweeps.report.verdict import Verdict, verdict
from sweeps.results import MEASURED_AXIS, PREDICTED_AXIS, Configuration

Make = Callable[..., Any]
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> "quoted" & |pipe| *star*'


def configuration(loss: str, memory: float, quality: float, test: float | None = None, n: int = 1) -> Configuration:
    tests = {} if test is None else {"test/ndcg_at_10": test}
    sd = 0.001 if n > 1 else None
    name = f"{loss} {memory}"
    return Configuration(
        name, loss, name, {"loss.name": loss}, tuple(map(str, range(n))), n, quality, sd, memory, tests
    )


def judge(*group: Configuration, axis: results.Axis = MEASURED_AXIS, **counts: int) -> Verdict:
    losses = {c.loss for c in group}
    top = query.best(group)
    baseline = "ce" if "ce" in losses or top is None else top.loss
    return verdict(group, query.savings(group, baseline), baseline, axis, Counter(counts or {"done": len(group)}))


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        (
            [configuration("ce", 4.2, 0.05, 0.04), configuration("sce", 1.0, 0.0485, 0.0388)],
            "sce reaches 97 % of ce's NDCG@10 with 4.2x less memory.",
        ),
        (
            [configuration("ce", 40.0, 0.05), configuration("cce", 1.0, 0.055), configuration("sce", 2.0, 0.06)],
            "cce reaches 110 % of ce's NDCG@10 with 40x less memory.",
        ),
        (
            [configuration("ce", 4.0, 0.05), configuration("bce", 1.0, 0.03)],
            "No other loss comes within 5 % of ce's NDCG@10 with less memory; the nearest, bce, reaches 60 % of it "
            "with 4.0x less.",
        ),
        (
            [configuration("ce", 4.0, 0.05, 0.04), configuration("sce", 6.0, 0.06, 0.05)],
            "No other loss needs less memory than ce; the best of them, sce, reaches 125 % of its NDCG@10 with 1.5x "
            "more.",
        ),
        (
            [configuration("ce", 4.0, 0.05, 0.04), configuration("bce", 5.0, 0.04, 0.05)],
            "No other loss needs less memory than ce, whose best configuration reaches NDCG@10 0.0400 on test at "
            "4 GiB.",
        ),
        (
            [configuration("sce", 2.0, 0.05), configuration("rece", 1.0, 0.049)],
            "rece reaches 98 % of sce's NDCG@10 with 2.0x less memory.",
        ),
        (
            [configuration("gbce", 2.0, 0.05)],
            "gbce is the only loss with a complete cell; its best configuration reaches NDCG@10 0.0500 on validation "
            "at 2 GiB.",
        ),
    ],
)
def test_the_verdict_in_words(group: Sequence[Configuration], sentence: str) -> None:
    assert judge(*group).sentence == sentence


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({}, "No cell is planned yet: there is no front to show."),
        (
            {"waiting": 3, "running": 1},
            "No cell is complete yet (4 planned: 3 waiting, 1 running): there is no front to show.",
        ),
        ({"oom": 2, "stopped": 1}, "No cell was completed (3 planned: 2 oom, 1 stopped): there is no front to show."),
    ],
)
def test_the_verdict_without_results(counts: dict[str, int], sentence: str) -> None:
    assert verdict((), {}, "ce", MEASURED_AXIS, Counter(counts)).sentence == sentence


def test_the_verdict_says_what_it_rests_on() -> None:
    group = [configuration("ce", 4.0, 0.05), configuration("sce", 1.0, 0.049)]
    single = " ".join(judge(*group, axis=PREDICTED_AXIS, done=2, waiting=3).notes)
    assert "One seed a configuration" in single
    assert "closed-form prediction" in single
    assert "of validation" in single
    assert "3 of 5 planned cells have not ended" in single
    group = [configuration("ce", 4.0, 0.05, 0.04, n=3), configuration("sce", 1.0, 0.049, 0.04, n=3)]
    several = " ".join(judge(*group, done=6).notes)
    assert "Means over 3 seeds" in several
    assert "0.0010" in several
    assert not re.search("One seed|prediction|of validation|have not ended|stands in", several)
    assert "stopped early" not in several
    assert "2 of 6 cells were stopped early" in " ".join(judge(*group, done=4, stopped=2).notes)
    alone = judge(configuration("sce", 4.0, 0.05), configuration("bce", 1.0, 0.05))
    assert "ce has no complete cell" in " ".join(alone.notes)


class Page(html.parser.HTMLParser):
    """What a browser would load, and the text it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._inside = tag
        if tag in ("script", "style"):
            (self.scripts if tag == "script" else self.styles).append("")
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.loads.append(str(value))
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.styles[-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def figure(self) -> dict[str, Any]:
        return json.loads(self.scripts[1], parse_constant=lambda name: pytest.fail(f"{name} in the figure"))


def page(written: report.Report) -> Page:
    return Page(written.html.read_text(encoding="utf-8"))


def test_the_page_loads_nothing(full: Make) -> None:
    found = page(report.write(full().directory))
    assert found.loads == []
    assert not re.search(r"@import|url\(", "".join(found.styles))
    assert found.tags["script"] == 3
    assert found.tags["link"] == found.tags["iframe"] == 0
    assert "plotly.js (basic" in found.scripts[0]
    own = found.scripts[2]
    assert not re.search(r"https?:|import\(|fetch|XMLHttp", own)


def test_the_page_says_everything(full: Make) -> None:
    sweep = full()
    found = page(report.write(sweep.directory))
    for words in (
        "rece reaches 98 % of ce's NDCG@10 with 4.4x less memory.",
        "n_buckets 583, n_extra_chunks 3",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "amazon_beauty_5core",
        "22,363",
        "d1" * 32,
        "0123456789abcdef",
        "2 x Some CPU",
        '"name": "asha"',
        "memory 2^-10 to 2^8 GiB (log2) x NDCG@10 0 to 1",
        "45 planned, 2 of them without an end",
        "2 duplicates, 3 by constraints",
        "1 planned cell has not started",
        "data.path: amazon_beauty_5core",
        "2023-11-14 22:13 UTC",
    ):
        assert words in found.text, words


def test_hostile_names_stay_text(made: Make) -> None:
    sweep = made()
    sweep.open(["a", "b", "c"], spec=HOSTILE, description=HOSTILE)
    sweep.cell("a", "ce", {"train.note": HOSTILE}, seed=1, gib=1.0, name=HOSTILE)
    sweep.train("a", 0.05)
    sweep.cell("b", HOSTILE, {}, seed=1, gib=1.0, name=HOSTILE)
    sweep.train("b", 0.05, outcome="error", reason=f"{HOSTILE}\n{HOSTILE}")
    sweep.cell("c", HOSTILE, {"train.batch_size": 1}, seed=1, gib=0.5, name=HOSTILE)
    sweep.train("c", 0.05)
    written = report.write(sweep.directory)
    found = page(written)
    assert found.tags["script"] == 3
    assert found.tags["img"] == 0
    assert found.handlers == []
    assert "</script><script>alert(1)</script>" in found.text
    hover = "".join(text for trace in found.figure["data"] for text in trace.get("hovertext", []))
    legend = "".join(trace["name"] for trace in found.figure["data"])
    assert "<img" not in hover + legend, "plotly reads these as HTML"
    assert "<" not in found.scripts[1], "no text can end the element that holds the data"
    markdown = written.markdown.read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert r"\|pipe\| \*star\*" in markdown


def test_the_figure_shows_every_configuration_once(full: Make) -> None:
    facts = gather(results.load(full().directory))
    traces = figure(facts)["data"]
    marks = [trace for trace in traces if trace["mode"] == "markers"]
    shown = sorted((x, y) for trace in marks for x, y in zip(trace["x"], trace["y"], strict=True))
    expected = [(c.memory_gib, c.quality) for c in facts.configurations]
    assert shown == sorted(expected + [(p.memory_gib, p.quality) for p in facts.stopped])
    assert len(facts.stopped) == 3
    legend = [trace["name"] for trace in traces if trace["showlegend"]]
    assert len(legend) == len(set(legend)) == 6  # five losses and the front of all
    assert sum(len(t["x"]) for t in marks if t["opacity"] == 1.0) == sum(len(f) for f in facts.fronts.values())


def test_predicted_memory_is_labelled_everywhere(full: Make) -> None:
    written = report.write(full(measured=False).directory)
    found = page(written)
    assert found.figure["layout"]["xaxis"]["title"]["text"].startswith("predicted peak memory")
    assert "nothing was measured on this CPU" in found.text
    assert "nothing was measured on this CPU" in written.markdown.read_text(encoding="utf-8")
    assert "closed form" in json.loads(written.json.read_text(encoding="utf-8"))["memory_axis"]


def test_the_tables_as_files(full: Make) -> None:
    sweep = full()
    written = report.write(sweep.directory)
    assert [path.name for path in written.files] == [
        "pareto.html",
        "pareto.png",
        "cells.csv",
        "front.csv",
        "report.md",
        "front.json",
    ]
    with written.csv.open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 45
    assert {row["loss.n_buckets"] for row in cells} == {"", "50", "100", "202", "87", "350", "583"}
    tree = json.loads(written.json.read_text(encoding="utf-8"))
    assert tree["verdict"] == written.verdict
    assert [key for one in tree["front"] for key in one["cell_keys"]] == list(written.front_keys)
    assert written.png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("stage", ["nothing", "planned", "running", "failed"])
def test_a_report_can_be_written_at_any_time(made: Make, stage: str) -> None:
    sweep = made()
    sweep.add("sweep", sweep_id="x", name="losses")
    if stage != "nothing":
        sweep.open(["a"], launch=2)
    if stage in ("running", "failed"):
        sweep.cell("a", "ce", {}, seed=1, gib=1.0)
        sweep.train("a", 0.05, epochs=1, outcome="oom" if stage == "failed" else "", reason="CUDA out of memory")
    written = report.write(sweep.directory)
    assert "no front to show" in written.verdict
    assert written.verdict in page(written).text
    assert written.front_keys == ()
    assert json.loads(written.json.read_text(encoding="utf-8"))["front"] == []
    assert all(path.stat().st_size for path in written.files)


def test_writing_twice_gives_the_same_files(full: Make) -> None:
    sweep = full()
    first = {path.name: path.read_bytes() for path in report.write(sweep.directory).files}
    assert {path.name: path.read_bytes() for path in report.write(sweep.directory).files} == first


def test_every_loss_looks_different() -> None:
    assert len({style.color for style in STYLES.values()}) == len(STYLES) == 9
    assert len({style.symbol for style in STYLES.values()}) == len(STYLES)
    assert len({style.marker for style in STYLES.values()}) == len(STYLES)


def test_memory_ticks_are_powers_of_two_and_few() -> None:
    assert memory_ticks([0.3, 1.9]) == ([0.25, 0.5, 1.0, 2.0], ["0.25", "0.5", "1", "2"])
    assert len(memory_ticks([2.0**-12, 2.0**8])[0]) <= 12
    assert memory_ticks([]) == ([1.0], ["1"])


def test_a_narrow_range_of_memory_is_marked_in_round_numbers() -> None:
    ticks, texts = memory_ticks([0.11, 0.27])
    assert texts == ["0.1", "0.125", "0.15", "0.2", "0.25", "0.3", "0.4", "0.5"]
    assert [f"{tick:.3g}" for tick in ticks] == texts


def test_the_command(full: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = full()
    assert main([str(sweep.directory)]) == 0
    verdict_line, path = capsys.readouterr().out.splitlines()
    assert "less memory" in verdict_line
    assert Path(path).is_file()
    assert main([str(tmp_path)]) == 2
    assert "has no ledger.jsonl" in capsys.readouterr().err
