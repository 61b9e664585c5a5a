"""The parts of the benchmark of the losses: its inputs, its gate, its ratios, its clock."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from benchmarks import (
    __main__ as command,
    loss_cases,
    loss_checks,
    loss_clock,
    loss_gate,
    loss_picture,
    loss_table,
    losses,
)
from benchmarks.loss_cases import MODULES
from benchmarks.loss_clock import Result, Step
from benchmarks.loss_problems import INPUTS, QUICK, SHAPES, Problem, Shape, build
from benchmarks.loss_table import Label
from seqrec.losses.ce import Ce

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BUILT = [one for one in dict.fromkeys(MODULES.values()) if importlib.util.find_spec(f"seqrec.kernels.{one}")]


def cross_entropy(problem: Problem) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(problem.hidden @ problem.items.T, problem.targets)


# The interpreter computes with numpy, which warns of infinities that kernels mean.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("module", BUILT)
def test_the_real_kernels_are_called_as_they_want(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One check and one setting of each loss: the tests of the kernels themselves have the rest."""
    one_check = {one.loss: one for one in loss_checks.checks(QUICK.width, quick=True)}
    one_case = {case.loss: case for case in reversed(loss_cases.cases(quick=True))}
    monkeypatch.setattr(loss_checks, "checks", lambda *_: list(one_check.values()))
    monkeypatch.setattr(loss_cases, "cases", lambda *_: list(one_case.values()))
    found = loss_gate.findings((module, QUICK.width), list(MODULES), DEVICE)
    assert len(found) >= 2 * list(MODULES.values()).count(module)
    assert not [finding.text for finding in found if finding.red or not finding.built]


def test_a_gate_of_processes_answers_or_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("sce", QUICK.width)]
    monkeypatch.setitem(MODULES, "sce", "nothing")
    assert loss_gate.check(pairs, CPU, 120.0, apart=True) == []
    late = loss_gate.check(pairs, CPU, 0.0, apart=True)
    assert [finding.text for finding in late if finding.red] == [f"nothing, width {QUICK.width}: no answer in time"]


@pytest.mark.parametrize("width", [64, 256])
def test_the_gate_has_inputs_at_its_sizes_on_a_gpu(fakes: object, width: int) -> None:
    """Choices must be clear in 16 bits there too."""
    for one in loss_checks.checks(width, quick=False):
        slow = width == 64 and one.name.endswith("rounds=8")
        if one.loss in ("rece", "sce") and not slow:
            found, wanted = one.run(CPU, torch.float32)
            assert loss_gate.relative(found[0], wanted[0]) < 1e-6, one.name


@pytest.mark.parametrize("inputs", INPUTS)
def test_problems_change_in_place_and_stay_as_peaked(inputs: str) -> None:
    shape = Shape("test", 3000, 700, 32)
    problem = build(shape, inputs, CPU)
    addresses = [one.data_ptr() for one in (problem.hidden, problem.items, problem.targets, problem.seed)]
    logits = problem.hidden @ problem.items.T
    assert float(logits.std()) == pytest.approx(0.4 if inputs == "random" else 6.0, rel=0.1)
    before, value = problem.hidden.clone(), cross_entropy(problem)
    sizes = problem.offsets.diff()
    assert problem.offsets[-1] == shape.n_positions
    assert problem.longest == int(sizes.max())
    assert int(sizes.min()) >= 1
    problem.stir()
    assert addresses == [one.data_ptr() for one in (problem.hidden, problem.items, problem.targets, problem.seed)]
    assert float((problem.hidden - before).norm() / before.norm()) > 0.5
    after = cross_entropy(problem)
    torch.testing.assert_close(after, value, rtol=1e-4, atol=0)


def test_peaked_targets_are_popular_and_confident() -> None:
    problem = build(Shape("test", 3000, 700, 64), "peaked", CPU)
    counts = problem.targets.bincount(minlength=700)
    assert int(counts.max()) > 10 * 3000 / 700
    assert len(problem.offsets.diff().unique()) > 5, "users of many lengths"
    p = (problem.hidden @ problem.items.T).softmax(1).gather(1, problem.targets[:, None])
    assert 0.1 < float(p.mean()) < 0.95
    flat = build(Shape("test", 3000, 700, 64), "random", CPU)
    assert float((flat.hidden @ flat.items.T).softmax(1).max()) < 0.02


def test_every_figure_and_goal_has_a_case() -> None:
    cases = {(case.loss, case.setting): case for case in loss_cases.cases()}
    assert all(loss in MODULES for loss, _ in cases)
    named = {(name, shape) for case in cases.values() for name in case.references for shape in case.shapes}
    figures = {(one["reference"], one["shape"]) for one in loss_table.published()}
    beside = {"torch float32", "torch bfloat16", "liger", "CE- position K=511", "CE- position K=4095"}
    assert {(name, shape) for name, shape in figures if name not in beside} <= named
    for loss, setting, shape in loss_table.goals():
        assert shape in cases[loss, setting].shapes
    for one in loss_table.published():
        shape = SHAPES[one["shape"]]
        assert [int(one[key]) for key in ("n_positions", "n_items", "width")] == [
            shape.n_positions, shape.n_items, shape.width,
        ]  # fmt: skip


def test_ratios_and_goals_of_a_row() -> None:
    def spread(ms: float) -> loss_clock.Spread:
        return loss_clock.Spread(ms, ms, ms, 5)

    label = Label("ce", "", "fused", torch.float16, SHAPES["S1"], ("apple exact", "apple filtered"))
    reading = loss_clock.Reading("ok", 13.8, spread(25.3), spread(25.25), 369 * 2**20)
    row = loss_table.row_of(label, reading, "random")
    assert (row["times_faster"], row["times_smaller"]) == (16.0, 1.0)
    assert loss_table.missed(label, row, "random") == []
    line = loss_table.line_of(label, row, reading, "random", True)
    assert "apple exact: 16.0x, 1.0x; apple filtered: 5.11x" in line
    slow = loss_clock.Reading("ok", 13.8, spread(45.0), spread(40.4), 2**30)
    row = loss_table.row_of(label, slow, "random")
    assert loss_table.missed(label, row, "random") == [">= 12x", "<= 28 ms", "<= 466 MiB"]
    row = loss_table.row_of(label, slow, "peaked")
    assert row["reference"] == row["times_faster"] == "", "the reference was measured on random inputs"
    assert loss_table.missed(label, row, "peaked") == []


def test_gradients_of_one_loss_belong_together() -> None:
    for inputs in INPUTS:
        problem = build(Shape("test", 300, 700, 32), inputs, CPU)
        value, to_hidden, to_items = Ce().value_and_gradients(problem.hidden, problem.items, problem.targets)
        loss_clock.hold_together((value, to_hidden, to_items), problem)
        tail_lost = to_items.clone()
        tail_lost[-200:] = 0
        for wrong in ((value, to_hidden, tail_lost), (value, to_hidden * 1.1, to_items), (value, to_hidden, -to_items)):
            with pytest.raises(loss_clock.InconsistentError):
                loss_clock.hold_together(wrong, problem)


def test_values_that_differ_are_told() -> None:
    def row(who: str, value: object, **other: object) -> dict[str, object]:
        same = {"loss": "ce", "setting": "", "shape": "S0", "inputs": "random"}
        return {**same, "who": who, "value": value, **other}

    table = [row("fused", 12.0)]
    assert losses.apart(row("eager", 12.1), table) == ""
    assert losses.apart(row("eager", 13.0), table) == "eager gives 13 where fused gives 12"
    for other in ({"shape": "S1"}, {"setting": "K=1"}):
        assert losses.apart(row("eager", 13.0, **other), table) == "", "something else"
    assert losses.apart(row("eager", 13.0, inputs="peaked"), [row("fused", 12.0, inputs="peaked")]) == ""
    assert losses.apart(row("eager", ""), table) == "", "did not fit"


def test_commands_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = command.commands()
    assert {"losses", "training", "evaluation", "studies", "steps", "quality"} <= names.keys()
    assert not {"loss_cases", "rows"} & names.keys()
    assert command.main(["--help"]) == 0
    assert "losses " in capsys.readouterr().out
    assert command.main(["nothing"]) == 2
    assert "NAME: got nothing; expected cluster, " in capsys.readouterr().err


def test_a_command_gets_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["restored afterwards"])
    with pytest.raises(SystemExit) as ended:
        command.main(["losses", "--help"])
    assert ended.value.code == 0
    assert "usage: python -m benchmarks losses" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ on a GPU


def _eager_step(problem: Problem) -> Step:
    loss = Ce()
    return lambda: loss.value_and_gradients(problem.hidden, problem.items, problem.targets)


@pytest.mark.gpu
def test_a_captured_step_is_timed_and_its_memory_counted() -> None:
    problem = build(Shape("test", 512, 3001, 64), "random", torch.device("cuda"))
    reading = loss_clock.read(_eager_step, problem, capture=True)
    assert reading.graph is not None
    assert reading.eager is not None
    assert reading.peak_bytes is not None
    gradients = 4 * 64 * (512 + 3001)
    assert gradients <= reading.peak_bytes < gradients + 4 * 512 * 3001 * 4


@pytest.mark.gpu
def test_a_step_that_keeps_old_inputs_is_found() -> None:
    problem = build(Shape("test", 512, 3001, 64), "random", torch.device("cuda"))
    loss = Ce()
    held: dict[bool, tuple[torch.Tensor, torch.Tensor]] = {}

    def step() -> Result:
        # What the capture meets stays where it is; of flat softmaxes targets say more than states.
        capturing = torch.cuda.is_current_stream_capturing()
        if not capturing or not held:
            held[capturing] = problem.hidden.clone(), problem.targets.clone()
            held.setdefault(True, held[capturing])
        hidden, targets = held[capturing]
        return loss.value_and_gradients(hidden, problem.items, targets)

    with pytest.raises(loss_clock.StaleError):
        loss_clock.read(lambda _: step, problem, capture=True)


@pytest.mark.parametrize(("inputs", "beside"), [("random", True), ("peaked", False)])
def test_the_reference_is_drawn_beside_the_inputs_it_was_timed_on(
    inputs: str, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(loss_picture, "draw", lambda rows, figures, path: drawn.append(len(figures)))
    loss_picture.draw_shape([{"shape": "S0", "inputs": inputs}] * 4, "S0", tmp_path / "p.png")
    assert [count > 0 for count in drawn] == [beside]
