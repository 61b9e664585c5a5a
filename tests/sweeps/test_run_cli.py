"""The command: exit codes, one message a mistake, and nothing heavy loaded before a sweep starts."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sweeps import run
from sweeps.options import Options
from sweeps.outcomes import Outcome

ROOT = Path(__file__).parents[2]
MALFORMED = Path(__file__).parent / "malformed"

MESSAGES = {
    path: [line.removeprefix("# error: ") for line in path.read_text().splitlines() if line.startswith("# error: ")]
    for path in sorted(MALFORMED.iterdir())
}
"""File -> what its one message must say, from the file's own first lines."""

HEAVY = ("ray", "torch", "mlflow", "matplotlib")

EXAMINE = """
import contextlib, io, json, sys
from sweeps.run import main
told = {}
for path in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([path])
    told[path] = [code, out.getvalue(), err.getvalue()]
print(json.dumps({"told": told, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""

SPACE = """
name: small
data: {path: amazon_beauty_5core}
loss: {name: gbce}
grid: {loss.n_negatives: [4, 16], train.batch_size: [64, 128]}
seeds: [1, 2]
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def examined() -> dict[str, Any]:
    """Every malformed search space through the command, in one process of its own."""
    answer = python("-c", EXAMINE, *map(str, MESSAGES))
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SPACE)
    return path


def test_thirty_malformed_spaces_and_more() -> None:
    assert len(MESSAGES) >= 30
    assert all(MESSAGES.values())


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_a_malformed_space_gets_one_clear_message(examined: dict[str, Any], path: Path) -> None:
    code, out, err = examined["told"][str(path)]
    assert code == run.USER_ERROR
    assert out == ""
    assert err.startswith(f"error: {path}:")
    assert err.count("\n") == 1
    for fragment in MESSAGES[path]:
        assert fragment in err


def test_a_malformed_space_loads_nothing_heavy(examined: dict[str, Any]) -> None:
    assert not set(HEAVY) & set(examined["loaded"])


def test_a_plan_loads_nothing_heavy() -> None:
    answer = python("-X", "importtime", "-m", "sweeps.run", "search_spaces/rece.yaml", "--plan")
    assert answer.returncode == 0, answer.stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in answer.stderr.splitlines()}
    assert "pydantic" in loaded
    assert not set(HEAVY) & loaded
    assert "2,904 cells" in answer.stdout
    assert "would run: 2,904" in answer.stdout


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m sweeps.run search_spaces/rece.yaml --plan | head -1; echo ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert answer.stderr == ""
    assert answer.stdout.splitlines()[-1] == "0"


def test_the_driver_gets_spec_plan_and_options(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []

    def executed(*arguments: Any) -> int:
        got.extend(arguments)
        return 1

    driver = ModuleType("sweeps.execute")
    driver.run = executed
    monkeypatch.setitem(sys.modules, "sweeps.execute", driver)
    monkeypatch.setattr("sweeps.execute", driver, raising=False)
    flags = ["--storage", str(tmp_path / "s"), "--limit-trials", "3", "--num-cpus", "2", "--no-tracking", "--quiet"]
    words = [str(space), *flags, "--tracking-uri", "http://there", "--keep-checkpoints", "--set", "seeds=[9]"]
    assert run.main([*words, "--retry", "oom"]) == 1
    spec, plan, options = got
    assert spec.overrides == ("seeds=[9]",)
    assert [cell.run.train.seed for cell in plan.cells] == [9, 9, 9, 9]
    assert options == Options(
        storage=tmp_path / "s",
        tracking_uri="http://there",
        no_tracking=True,
        limit_trials=3,
        num_cpus=2,
        quiet=True,
        keep_checkpoints=True,
        retry=(Outcome.OOM,),
        command=shlex.join(["python", "-m", "sweeps.run", *words]),
    )


def test_interruption_is_130(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.space, "plan", interrupted)
    assert run.main([str(space)]) == run.INTERRUPTED


@pytest.mark.parametrize(
    ("flags", "law"),
    [
        (["--set", "train.epochs=0"], "--set train.epochs: got 0; expected a number >= 1."),
        (["--set", "train.epoch=3"], "--set train.epoch: unknown key. hint: did you mean train.epochs?"),
        (["--set", "loss.rounds=3"], "--set loss.rounds: unknown key of loss gbce. hint: rounds belongs to rece"),
        (["--set", "train.batch_size=[]"], "--set train.batch_size: got []; expected at least one value."),
        (
            ["--set", "scheduler.name=x"],
            "--set scheduler.name: got 'x'; expected 'fifo', 'asha', 'dominance' or 'pareto_asha'.",
        ),
        (["--set", "shedule.name=x"], "--set shedule.name: unknown key."),
        (["--set", "train.epochs"], "--set: got 'train.epochs'; expected key=value."),
        (["--set", "train={}"], "--set train: got the whole section"),
        (["--set", "train.epochs=[1"], "--set train.epochs: line 1 is not valid YAML"),
        (["--set", "blocks=[]"], "--set blocks: cannot be set"),
        (["--data", "nowhere.parquet"], "nowhere.parquet"),
        (["--reuse", "nowhere", "--plan"], "--reuse: got 'nowhere'; expected the folder of a sweep, or of sweeps"),
        (["--reuse", "a", "--no-reuse"], "--reuse: got 'a'; expected no --no-reuse"),
        (["--limit-gpu-hours", "2", "--plan"], "--limit-gpu-hours: got 2.0; expected none where trials use no GPU"),
        (["--set", "budget.gpu_hours=2", "--plan"], "small.yaml: budget.gpu_hours: got 2.0; expected none where"),
        (["--plan", "--card", "h100"], "--card: got 'h100'; expected a size such as 80GiB, or one of h100-80gb"),
        (["--plan", "--card", "0GiB"], "--card: got '0GiB'; expected a size"),
        (["--plan", "--times", "nowhere"], "--times: got 'nowhere'; expected a sweep's folder, or its ledger.jsonl"),
        (["--card", "h100-80gb"], "--card: got no --plan"),
        (["--json"], "--json: got no --plan"),
        (["--address", "x:1", "--num-cpus", "2"], "--num-cpus: got 2; expected no --address"),
    ],
)
def test_a_mistake_on_the_command_line(
    space: Path, flags: list[str], law: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([str(space), *flags]) == run.USER_ERROR
    out, err = capsys.readouterr()
    assert out == ""
    assert law in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--limit-trials", "0"],
        ["--limit-gpu-hours", "-1"],
        ["--retry", "done"],
        ["--num-cpus", "two"],
        ["--nonsense"],
        ["--pla"],
    ],
)
def test_a_mistake_of_usage_is_2(space: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.main([str(space), *flags])
    assert caught.value.code == run.USER_ERROR
    assert "error:" in capsys.readouterr().err


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["nothing.yaml"]) == run.USER_ERROR
    assert capsys.readouterr().err == "error: nothing.yaml: cannot be read (No such file or directory).\n"


def test_a_plan_as_json(space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--plan", "--json", "--storage", str(tmp_path), "--limit-trials", "5"]
    assert run.main([str(space), *flags]) == run.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], len(told["cells"]), told["would_run"]) == ("small", 8, 5)
    assert told["data"]["n_items"] == 12101
    assert told["cells"][0]["parameters"] == {
        "loss.name": "gbce",
        "loss.n_negatives": 4,
        "train.batch_size": 64,
        "train.seed": 1,
    }


def test_a_plan_with_the_impossible_is_printed_and_refused(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--plan", "--set", "loss.n_negatives=[16, 20000]"]
    assert run.main([str(space), *flags]) == run.USER_ERROR
    out, err = capsys.readouterr()
    assert "would run: nothing" in out
    assert "4 points of 8 cannot exist on amazon_beauty_5core" in err
    hint = err.partition("constraints: ")[2].strip()
    assert run.main([str(space), *flags, "--set", f"constraints={hint}"]) == run.OK
    assert "4 dropped by constraints, 0 cannot exist" in capsys.readouterr().out


def test_what_has_ended_would_not_run_again(space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--plan", "--json", "--storage", str(tmp_path)]
    run.main([str(space), *flags])
    cell = json.loads(capsys.readouterr().out)["cells"][3]
    (tmp_path / "small").mkdir()
    events: list[dict[str, Any]] = [
        {"type": "sweep", "sweep_id": "1", "name": "small"},
        {"type": "cell", "label": "", "parameters": {}, "run": {}, "predicted_bytes": 1}
        | {key: cell[key] for key in ("cell_key", "configuration_key")},
        {"type": "end", "cell_key": cell["cell_key"], "attempt": 1, "outcome": "done", "reason": "", "metrics": {}},
    ]
    lines = [json.dumps({"sequence": i, "time_ms": i, "epochs": 1, **event}) for i, event in enumerate(events)]
    (tmp_path / "small" / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    run.main([str(space), *flags])
    told = json.loads(capsys.readouterr().out)
    assert told["would_run"] == 7
    assert [c["outcome"] for c in told["cells"]].count("done") == 1
    assert told["cells"][3]["outcome"] == "done"
