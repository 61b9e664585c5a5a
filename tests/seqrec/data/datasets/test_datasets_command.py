"""`prepare NAME --raw DIR` and `list` as commands: what is printed where, and which options are refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import seqrec.data
from seqrec.config import Data
from seqrec.data.__main__ import main
from seqrec.data.datasets import pipeline
from seqrec.data.datasets.progress import Progress


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / "ml-20m"
    folder.mkdir(parents=True)
    rows = [f"{user},{item},{3 + item % 2},{1112486000 + item}" for user in range(6) for item in range(8)]
    folder.joinpath("ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows, rows[1], rows[1]]))
    return tmp_path / "raw"


def printed(text: str) -> dict[str, str]:
    return {key: value.strip() for key, value in (line.split("  ", 1) for line in text.splitlines())}


def test_a_data_set_is_prepared_by_name(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "films.parquet"
    assert main(["prepare", "ml_20m", "--raw", str(films), "--out", str(out)]) == 0
    said = capsys.readouterr()
    told = printed(said.out)
    assert told["protocol"] == "replay"
    assert told["filters"] == "rating > 3, then items of >= 5 rows, then users of >= 3 rows"
    assert told["interactions read"] == "50  (published: 20000263)"
    assert told["interactions chosen"] == "26"
    assert told["users after filter"] == "6  (published: 138078)"
    assert told["duplicate rows kept"] == "2"
    assert "reading" in said.err
    assert "is not of the published size" in said.err
    assert "F. M. Harper" in said.err
    account = json.loads(out.with_suffix(".json").read_text())
    assert account["digest"] == told["digest"]
    assert account["provenance"]["raw"][0]["sha256"] == told["raw sha256"]
    assert account["statistics"] == {"users": 6, "items": 4, "interactions": 26}
    assert account["preparation"]["filters"]["rating_above"] == 3.0
    assert account["preparation"]["duplicates"] == {"before filter": 2, "after filter": 2}
    assert seqrec.data.statistics(Data(path=str(out))).digest == told["digest"]


def test_flags_override_the_protocol(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "ml_20m", "--raw", str(films), "--rating-above", "off", "--min-item-rows", "1"]) == 0
    told = printed(capsys.readouterr().out)
    assert told["file"] == "ml_20m.parquet"
    assert told["protocol"] == "replay, overridden by flags"
    assert told["filters"] == "users of >= 3 rows"
    assert told["interactions after filter"] == "50", "no published size beside other filters"
    for flag, value, size in (
        ("--min-item-users", "7", None),
        ("--min-user-items", "9", None),
        ("--min-user-rows", "9", "10"),
        ("--rating-above", "4", None),
    ):
        code = main(["prepare", "ml_20m", "--raw", str(films), "--protocol", "none", flag, value])
        said = capsys.readouterr()
        if size is None:
            assert code == 2
            assert "expected filters that leave something" in said.err
        else:
            assert printed(said.out)["interactions after filter"] == size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ml_20"], "NAME: got 'ml_20'; expected a data set: beeradvocate, behance"),
        (["ml_20"], "hint: did you mean ml_20m?"),
        (["ml_20m", "--protocol", "rece"], "--protocol: got 'rece'; expected a protocol of ml_20m: replay, none."),
        (["ml_20m", "--event", "2"], "--event: got 2.0; expected a data set with a column for it, which ml_20m"),
        (["ml_20m", "--min-user-rows", "0"], "--min-user-rows: got 0; expected an integer >= 1."),
        (["ml_20m", "--min-item-users", "0"], "--min-item-users: got 0; expected an integer >= 1."),
        (["ml_20m", "--rating-above", "nan"], "--rating-above: got 'nan'; expected a number, or off."),
        (["ml_20m", "--earliest", "2015"], "--earliest: got '2015'; expected a day as YYYY-MM-DD."),
        (["ml_20m", "--earliest", "2041-01-01"], "--earliest: got '2041-01-01'; expected a day before --latest"),
        (["ml_20m", "--earliest", "2010-01-01"], "line 2, timestamp: got '1112486000'; expected a time from 2010"),
        (["ml_20m", "--latest", "2000-01-01"], "expected a time from 1990-01-01 to 2000-01-01"),
        (["ml_20m", "--user-column", "x"], "--user-column: got 'x'; expected no --raw beside it."),
        (["ml_20m", "--out", "ratings.csv"], "--out: got 'ratings.csv'; expected a file of its own that ends in"),
        (["gowalla"], "expected a folder that holds one of loc-gowalla_totalCheckins.txt.gz"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_exit_code_2(
    films: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(films.parent)
    assert main(["prepare", *arguments, "--raw", str(films)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert [file.name for file in films.parent.iterdir()] == ["raw"], "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ml_20m"], "--raw: got None; expected the folder that holds one of ml-20m.zip, ml-20m/ratings.csv"),
        (["x.csv", "--protocol", "rece"], "--protocol: got 'rece'; expected a data set of the papers with --raw"),
        (["x.csv"], "--out: got None; expected the file to write."),
    ],
)  # fmt: skip
def test_a_file_and_a_name_are_told_apart(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(["prepare", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "deal", interrupted)
    command = ["prepare", "ml_20m", "--raw", str(films), "--out", str(tmp_path / "x.parquet")]
    assert main(command) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command) == 0
    assert "2 of 2 parts were there already" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (films / "file").write_text("")
    assert main(["prepare", "ml_20m", "--raw", str(films), "--out", str(films / "file" / "x.parquet")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_data_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    told = printed(capsys.readouterr().out)
    assert told["gowalla"] == "Gowalla: check-ins; rece, replay, none"
    assert len(told) == 11
    assert main(["list", "gowalla"]) == 0
    assert "SNAP" in printed(capsys.readouterr().out)["publisher"]
    assert main(["list", "gowala"]) == 2
    assert "did you mean gowalla?" in capsys.readouterr().err


def test_progress_is_plain_lines_in_a_log() -> None:
    stream = io.StringIO()
    with Progress(stream, line_s=0).stage("reading x", 200) as advance:
        advance(50, "7 events")
    assert stream.getvalue().splitlines() == ["reading x", "reading x: 25 %, 7 events"]
    stream = io.StringIO()
    with Progress(stream, line_s=1000).stage("reading x", 200) as advance:
        advance(50, "7 events")
    assert stream.getvalue().splitlines() == ["reading x"], "not a line for every step"


def test_progress_is_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(io.StringIO())
    stream = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=stream, force_terminal=True, width=100))
    with progress.stage("reading x", 200) as advance:
        advance(50, "7 events")
    assert "reading x" in stream.getvalue()
    assert "━" in stream.getvalue()
    assert "7 events" in stream.getvalue()
