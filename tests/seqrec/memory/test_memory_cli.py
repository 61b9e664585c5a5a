"""The command on a CPU: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from seqrec.memory import __main__ as command, measure
from seqrec.memory.components import MEANINGS, Breakdown, predict

SMALL = ["--batch-size", "8", "--set", "model.max_length=16", "--set", "model.hidden_size=16"]
CATALOG = ["--catalog-size", "3000"]


def lines_of(text: str) -> dict[str, list[str]]:
    return {line[:18].strip(): line[18:].split() for line in text.splitlines()}


def test_the_table_has_a_row_a_component_and_a_column_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--batch-size", "8", "64", "--catalog-size", "1000", "5000", "--loss", "ce", "reference_ce"]
    assert command.main([*arguments, "--predict"]) == 0
    head, _, table = capsys.readouterr().out.partition("\n\n")
    assert "predicted in closed form; nothing measured" in head
    lines = lines_of(table)
    assert set(MEANINGS) < lines.keys()
    assert lines["loss"] == ["ce"] * 4 + ["reference_ce"] * 4
    assert lines["batch_size"] == ["8", "8", "64", "64"] * 2
    assert lines["catalog_size"] == ["1,000", "5,000"] * 4
    assert lines[""] == ["predicted"] * 8
    assert "oom" not in lines
    peaks = [float(text) for text in lines["= peak"]]
    assert all(peak > float(state) for peak, state in zip(peaks, lines["= state"], strict=True))
    assert peaks[7] > 3 * peaks[3], "the published cross-entropy keeps its logits"


def test_on_a_cpu_it_says_that_nothing_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([*SMALL, *CATALOG]) == 0
    out = capsys.readouterr().out
    assert out.startswith("memory of one train step, GiB: predicted in closed form; nothing measured (no CUDA device)")
    assert "measured" not in lines_of(out.partition("\n\n")[2])[""]


def test_json_and_csv_say_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    losses = ["--loss", "sce", "cce_minus", "--set", "loss.n_negatives=7", "--set", "loss.bucket_size_y=9"]
    losses += ["--set", "loss.n_buckets=3", "--set", "loss.bucket_size_x=4", "--set", "model.n_heads=2"]
    assert command.main([*SMALL, *CATALOG, *losses, "--predict", "--json", "--csv", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["loss"] for one in found] == ["sce", "cce_minus"]
    assert found[1]["keys"] == {"n_negatives": 7, "sampling": "uniform", "correction": "log_count"}
    assert found[0]["keys"]["n_buckets"] == 3
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for one in found:
        told = {row["component"]: int(row["bytes"]) for row in rows if row["loss"] == one["loss"]}
        assert told == one["predicted"]["components_bytes"] | {
            "state": one["predicted"]["state_bytes"],
            "peak": one["predicted"]["peak_bytes"],
        }
        assert "measured" not in one
    assert {row["hidden_size"] for row in rows} == {"16"}


def test_the_picture_is_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory.png"
    assert command.main([*SMALL, *CATALOG, "--loss", "ce", "cce", "--predict", "--plot", str(path)]) == 0
    image = matplotlib.image.imread(path)
    height, width = image.shape[:2]
    assert 600 < height < 1200
    assert 900 < width < 3000
    assert len({tuple(pixel) for pixel in image[:, width // 4].tolist()}) > 5, "a bar of several colours"


def test_measured_columns_stand_beside_the_predicted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu_meter: Any
) -> None:
    """The device is a stand-in; the stages are real."""

    def on_cpu(run: Any, split: Any, device: torch.device, *, reference_ce: bool) -> Breakdown:
        assert device.type == "cuda"
        if reference_ce:
            whole = predict(run, split.statistics, reference_ce=True).components
            return Breakdown({"weights": whole["weights"]}, {}, oom="loss_forward")
        return measure.staged(run, split, torch.device("cpu"), cpu_meter)

    monkeypatch.setattr(measure, "measure", on_cpu)
    monkeypatch.setattr(command, "_device", lambda: ("a stand-in", ""))
    picture = tmp_path / "both.png"
    assert command.main([*SMALL, *CATALOG, "--loss", "ce", "reference_ce", "--plot", str(picture)]) == 0
    told = capsys.readouterr()
    assert "measured on a stand-in" in told.out
    assert "measuring reference_ce, batch 8, 3,000 items" in told.err
    lines = lines_of(told.out.partition("\n\n")[2])
    assert lines[""] == ["predicted", "measured"] * 2
    assert lines["weights"][0] == lines["weights"][1]
    assert lines["= peak"][3] == "-"
    assert lines["oom"] == ["-", "-", "-", "loss_forward"]
    assert picture.stat().st_size > 10_000


def test_a_data_set_is_its_own_catalog(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--data", "amazon_beauty_5core", "--predict", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["catalog_size"] == 12_101
    assert found["predicted"]["components_bytes"]["data"] > 4 * 150_000, "histories of 22,363 users"


def test_shorter_histories_need_fewer_activations(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for more in ([], ["--length-mean", "20"], ["--length-mean", "20", "--users", "4096"]):
        assert command.main([*CATALOG, *more, "--predict", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["predicted"]["components_bytes"])
    full, short, many = (one["activations"] for one in found)
    assert full > many > short, "of many users, a batch of long histories is likely"
    assert found[2]["data"] > found[1]["data"]


MISTAKES: list[tuple[list[str], str]] = [
    ([*CATALOG, "--batch-size", "0"], "--batch-size: got 0; expected an integer >= 1."),
    (["--catalog-size", "1"], "--catalog-size: got 1; expected an integer from 2 to 2147483647."),
    ([], "--catalog-size: missing; expected the number of items, or a data set (--data)."),
    ([*CATALOG, "--loss", "cee"], "--loss: got 'cee'; expected one of ce, "),
    ([*CATALOG, "--model", "gru"], "--model: got 'gru'; expected one of sasrec"),
    ([*CATALOG, "--set", "loss.n_negative=3", "--loss", "bce"], "hint: did you mean loss.n_negatives?"),
    ([*CATALOG, "--set", "loss.n_negatives=3"], "--set loss.n_negatives: unknown key."),
    ([*CATALOG, "--loss", "bce"], "--loss bce: loss.n_negatives: missing; expected a value."),
    ([*CATALOG, "--loss", "bce", "--set", "loss.n_negatives=0"], "loss.n_negatives: got 0; expected a number >= 1."),
    ([*CATALOG, "--loss", "bce", "--set", "loss.n_negatives=2999"], "loss.n_negatives: got 2999; expected <= 2799"),
    ([*CATALOG, "--set", "model.hidden_size=x"], "model.hidden_size: got 'x'; expected an integer."),
    ([*CATALOG, "--set", "train.batch_size=4"], "--set train.batch_size: cannot be set; expected --batch-size."),
    ([*CATALOG, "--set", "data.split=temporal"], "--set data.split: cannot be set without a data set"),
    ([*CATALOG, "--set", "rounds"], "--set: got 'rounds'; expected KEY=VALUE"),
    ([*CATALOG, "--users", "5"], "--users: got 5; expected at least the batch size (128)."),
    ([*CATALOG, "--length-mean", "nan"], "--length-mean: got nan; expected a number from 2"),
    ([*CATALOG, "--data", "amazon_beauty_5core"], "--catalog-size: got [3000]; expected none beside --data"),
    ([*CATALOG, "--plot", "nowhere/at.png"], "--plot: got 'nowhere/at.png'; expected a file in a folder that exists."),
    ([*CATALOG, "--plot", "at.pdf"], "--plot: got 'at.pdf'; expected a file whose name ends in .png."),
    (["--data", "nothing_of_that_name"], "nothing_of_that_name"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[told[:40] for _, told in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_device", lambda: pytest.fail("looked for a device"))
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert len(err.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, told in ((tmp_path, "expected a file in a folder"), (tmp_path / ("x" * 300), "cannot be written")):
        assert command.main([*SMALL, *CATALOG, "--predict", "--csv", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert told in err


def test_predicting_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys; from seqrec.memory.__main__ import main; main(['--catalog-size', '9000', '--predict']);"
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"
