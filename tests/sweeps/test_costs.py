"""What a plan costs: sums worked out by hand, and every figure with what it rests on."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqrec import epoch_time
from seqrec.errors import UserError
from sweeps import cards, costs, execute, measured, pace, placement, results, run
from sweeps.cards import GIB
from sweeps.costs import Costs
from sweeps.ledger import FILE_NAME
from sweeps.space import Plan
from sweeps.spec import Resources, SchedulerSpec
from tests.sweeps.test_execute import CELLS, PLAN, FakeRay, options, ray as ray, space as sweep
from tests.sweeps.test_plan import make

assert ray  # the fixture


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * GIB), ("80 gb", 80 * 10**9), ("1.5GiB", 3 * GIB // 2), ("H100-80GB", 79 * GIB)],
)
def test_a_card_is_a_name_or_a_size(text: str, size: int) -> None:
    assert cards.card(text).memory_bytes == size


@pytest.mark.parametrize("text", ["", "80", "-1GiB", "0GB", "h100", "80GiBs"])
def test_anything_else_is_no_card(text: str) -> None:
    with pytest.raises(UserError, match=r"--card: got .*; expected a size such as 80GiB, or one of h100-80gb"):
        cards.card(text)


def test_cells_alone_take_turns_longest_first() -> None:
    """Two GPUs, 5 4 3 3 3 hours: 5 + 3 and 4 + 3 + 3."""
    cells = [(0.125, 3600.0 * hours) for hours in (3, 5, 3, 4, 3)]
    assert costs.gpu_hours(cells) == 18
    assert costs.wall_hours_alone(cells, 2) == 10
    assert costs.wall_hours_alone(cells, 1) == 18
    assert costs.wall_hours_packed(cells, 2) == 5, "the longest, for 18 / 8 / 2 is less"
    assert costs.wall_hours_packed([(0.5, 3600.0)] * 8, 2) == 2
    assert costs.wall_hours_alone([], 3) == costs.wall_hours_packed([], 3) == 0


@pytest.mark.parametrize(("grace", "factor", "epochs"), [(1, 3.0, 9), (2, 2.0, 16), (1, 4.0, 64), (5, 3.0, 5)])
def test_ashas_law_is_what_its_rungs_leave(grace: int, factor: float, epochs: int) -> None:
    """Held against a count of 4,096 or 6,561 cells, of which exactly 1 in `factor` passes each rung."""
    alive = round(factor ** (12 if factor == 2 else 8 if factor == 3 else 6))
    total, spent = alive, 0
    rungs = [grace * factor**k for k in range(12) if grace * factor**k < epochs]
    for epoch in range(1, epochs + 1):
        spent += alive
        if epoch in rungs:
            alive = round(alive / factor)
    scheduler = SchedulerSpec(name="asha", grace_epochs=grace, reduction_factor=factor)
    assert pace.expected_epochs(scheduler, epochs) == pytest.approx(spent / total)


def test_pareto_asha_is_priced_as_the_published_cells_were() -> None:
    """27 epochs with rungs at 1, 3 and 9: 32.7 % (docs/results/stopping.md); other margins: nobody knows."""
    usual = SchedulerSpec(name="pareto_asha")
    assert pace.expected_epochs(usual, 27) / 27 == pytest.approx(0.327, abs=5e-4)
    assert pace.expected_epochs(usual, 1) == 1
    assert math.isnan(pace.expected_epochs(SchedulerSpec(name="pareto_asha", margin=0.3), 27))
    assert math.isnan(pace.expected_epochs(SchedulerSpec(name="dominance"), 27))


def test_nobody_stops_under_fifo() -> None:
    assert pace.expected_epochs(SchedulerSpec(), 300) == 300


def estimate(plan: Plan, card: str = "h100-80gb", **changes: Any) -> Costs:
    given: dict[str, Any] = {
        "card": cards.card(card),
        "assumed": False,
        "gpus": 1,
        "resources": Resources(),
        "scheduler": SchedulerSpec(),
    }
    return costs.estimate(plan.cells, plan, **given | changes)


def test_a_plan_is_the_sum_of_its_cells(tmp_path: Path) -> None:
    _, plan = make(tmp_path / "s.yaml")
    total = 0.0
    for cell in plan.cells:
        duration = epoch_time.predict(cell.run, plan.statistics)
        assert duration is not None
        total += duration.cell_s(3)
    assert costs.gpu_hours(estimate(plan).seconds(expected=False)) == pytest.approx(total / 3600)


def test_further_replicates_cost_what_their_chance_is(tmp_path: Path) -> None:
    """Three epochs, one rung after the first: whoever passes it trains two more, and has its second seed."""
    _, plan = make(tmp_path / "s.yaml", "seeds=[1, 2]")
    total = epochs = 0.0
    for cell in plan.cells:
        duration = epoch_time.predict(cell.run, plan.statistics)
        assert duration is not None
        chance = 1.0 if cell.run.train.seed == 1 else pace.PASSES
        total += chance * duration.cell_s(1 + 2 * pace.PASSES)
        epochs += chance * (1 + 2 * pace.PASSES)
    found = estimate(plan, scheduler=SchedulerSpec(name="pareto_asha"))
    assert costs.gpu_hours(found.seconds(expected=True)) == pytest.approx(total / 3600, rel=0.02), (
        "validations are whole"
    )
    assert found.epochs_share == pytest.approx(epochs / 3 / len(plan.cells))


def test_cells_too_large_for_a_card_are_listed_and_in_no_sum() -> None:
    sizes = [GIB, 3 * GIB, 20 * GIB, 90 * GIB]
    plan = replace(PLAN, cells=tuple(replace(c, predicted_bytes=s) for c, s in zip(CELLS, sizes, strict=False)))
    found = estimate(plan, "24GiB")
    assert [cell.predicted_bytes for cell in found.too_large] == [90 * GIB]
    assert costs.packing(found) == {0.125: 1, 0.25: 1, 1.0: 1}
    assert len(found.seconds(expected=False)) == 3
    shown = costs.text(found)
    assert "too large  1 cells fit no GPU" in shown
    assert f"{plan.cells[3].cell_key}  90.00 GiB" in shown
    assert costs.to_json(found)["too_large"] == [plan.cells[3].cell_key]
    assert all(placement.share(c.predicted_bytes, 24 * GIB) for c in plan.cells[:3])


def test_a_stated_share_is_the_packing(tmp_path: Path) -> None:
    _, plan = make(tmp_path / "s.yaml")
    assert costs.packing(estimate(plan, resources=Resources(gpus_per_trial=0.5))) == {0.5: len(plan.cells)}


def test_a_stated_share_may_be_too_small() -> None:
    """Half of 24 GiB holds 9 GiB with margin and context, and not 10."""
    sizes = [9 * GIB, 10 * GIB]
    plan = replace(PLAN, cells=tuple(replace(c, predicted_bytes=s) for c, s in zip(CELLS, sizes, strict=False)))
    found = estimate(plan, "24GiB", resources=Resources(gpus_per_trial=0.5))
    assert [cell.predicted_bytes for cell in found.too_large] == [10 * GIB]
    assert not estimate(plan, "24GiB", resources=Resources(gpus_per_trial=2.0)).too_large


def test_every_figure_says_what_it_rests_on(tmp_path: Path) -> None:
    _, plan = make(tmp_path / "s.yaml")
    shown = costs.text(estimate(plan, "a100-40gb", gpus=4, assumed=True))
    assert "4 GPUs, a100-40gb, 39 GiB each (assumed; --card names another)" in shown
    assert "closed forms fitted to an NVIDIA H100 80GB HBM3 (33 whole epochs: median error" in shown
    assert "times of a100-40gb are not known: these are the H100's" in shown
    assert "50 items: nothing like it was timed (all cells)" in shown
    assert "nobody stops a cell; what patience saves is not known" in shown
    assert "are not known" not in costs.text(estimate(plan))


def test_a_scheduler_without_a_law_is_said_to_be_unknown(tmp_path: Path) -> None:
    _, plan = make(tmp_path / "s.yaml")
    other = SchedulerSpec.model_construct(name="other", grace_epochs=1, reduction_factor=3.0, shuffle_seed=0)
    found = estimate(plan, scheduler=other)
    assert found.epochs_share is None
    assert "expected   not known for other; --times names a sweep that tells" in costs.text(found)
    assert costs.to_json(found)["expected"] is None


def test_eager_cells_are_counted_and_left_out(tmp_path: Path) -> None:
    _, plan = make(tmp_path / "s.yaml", "train.engine=eager")
    found = estimate(plan)
    assert found.untimed == len(plan.cells)
    assert "12 cells have no times (eager or fp32) and are in no sum below" in costs.text(found)


def test_the_document_for_machines_has_the_same_sums(tmp_path: Path) -> None:
    _, plan = make(tmp_path / "s.yaml")
    found = estimate(plan, scheduler=SchedulerSpec(name="asha"), gpus=2)
    told = json.loads(json.dumps(costs.to_json(found)))
    assert set(told["cells"]) == {cell.cell_key for cell in plan.cells}
    assert told["all_epochs"]["gpu_hours"] == costs.gpu_hours(found.seconds(expected=False))
    assert told["expected"]["gpu_hours"] < told["all_epochs"]["gpu_hours"]
    assert told["epochs_share"] == pytest.approx((1 + 2 / 3) / 3)


# ------------------------------------------------------------------------------------------ times of an earlier sweep


def test_an_earlier_sweep_tells_its_times(tmp_path: Path, ray: FakeRay) -> None:
    """Its epochs took 1 s each; cells that it has not trained get the form times what it was off by."""
    execute.run(sweep(), replace(PLAN, cells=CELLS[:2]), options(tmp_path))
    told = measured.load(tmp_path / "s", PLAN.statistics)
    assert (told.cells, told.epochs_share) == (2, 1.0)
    assert told.seconds(CELLS[0], 0.5) == 1.0
    forms = []
    for cell in CELLS[:3]:
        duration = epoch_time.predict(cell.run, PLAN.statistics)
        assert duration is not None
        forms.append(duration.epoch_s + duration.valid_s)
    ratio = (1 / forms[0] + 1 / forms[1]) / 2
    assert told.seconds(CELLS[2], forms[2]) == pytest.approx(ratio * forms[2])
    assert told.seconds(CELLS[2], None) == 1.0, "without a form the loss's median"
    assert measured.load(tmp_path / "s" / FILE_NAME, PLAN.statistics) == told
    found = estimate(PLAN, measured=told)
    assert found.prices[0].epoch_s == 1.0
    shown = costs.text(found)
    assert f"2 cells of {tmp_path / 's' / FILE_NAME} on " in shown
    assert "stopping and patience left 100% of the epochs" in shown


def test_times_of_cells_that_shared_a_gpu_are_told_as_such(tmp_path: Path, ray: FakeRay) -> None:
    execute.run(sweep(), PLAN, options(tmp_path, limit_trials=2))
    path = tmp_path / "s" / FILE_NAME
    assert "sharing it" not in costs.text(estimate(PLAN, measured=measured.load(path, PLAN.statistics)))
    path.write_text(path.read_text().replace('"gpu_share":0.0', '"gpu_share":0.5', 1))
    shown = costs.text(estimate(PLAN, measured=measured.load(path, PLAN.statistics)))
    assert "as they ran there, 1 of them sharing it with others;" in " ".join(shown.split())


def test_what_stopping_saved_there_is_expected_here(tmp_path: Path, ray: FakeRay) -> None:
    longer = [cell.run.model_copy(update={"train": cell.run.train.model_copy(update={"epochs": 6})}) for cell in CELLS]
    plan = replace(PLAN, cells=tuple(replace(c, run=run) for c, run in zip(CELLS, longer, strict=True)))
    execute.run(sweep(), plan, options(tmp_path))
    assert list(results.table(tmp_path / "s")["epochs"]) == [3] * 6
    found = estimate(plan, measured=measured.load(tmp_path / "s", plan.statistics))
    assert found.epochs_share == 0.5
    assert found.prices[0].whole_s is not None
    assert found.prices[0].expected_s == pytest.approx(found.prices[0].whole_s - 3.0)


def test_times_of_other_data_or_of_nothing_are_refused(tmp_path: Path, ray: FakeRay) -> None:
    with pytest.raises(UserError, match=r"--times: got .*; expected a sweep's folder, or its ledger.jsonl"):
        measured.load(tmp_path, PLAN.statistics)
    ray.outcomes = dict.fromkeys(range(1, 7), "oom")
    execute.run(sweep(), PLAN, options(tmp_path))
    with pytest.raises(UserError, match="expected a sweep with finished cells whose epochs were timed"):
        measured.load(tmp_path / "s", PLAN.statistics)
    with pytest.raises(UserError, match=r"expected a sweep on other \(digest 111111111111"):
        measured.load(tmp_path / "s", replace(PLAN.statistics, name="other", digest="1" * 64))


def test_a_large_plan_shares_what_its_cells_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One prediction a configuration: what 100,000 cells cost is the number of their configurations."""
    seeds = random.Random(1).sample(range(10_000), 50)
    _, plan = make(tmp_path / "s.yaml", f"seeds={seeds}")
    asked = []
    predict = epoch_time.predict
    monkeypatch.setattr(epoch_time, "predict", lambda run, data: asked.append(run) or predict(run, data))
    estimate(plan)
    assert len(asked) == len({cell.configuration_key for cell in plan.cells}) == len(plan.cells) / 50


def test_the_command_line_tells_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    base = "data: {path: amazon_beauty_5core}\nloss: {name: ce}\ntrain: {engine: eager}\n"
    path.write_text(f"{base}grid: {{train.batch_size: [64, 4096]}}\n")
    flags = [str(path), "--plan", "--card", "2GiB", "--gpus", "4", "--storage", str(tmp_path)]
    assert run.main([*flags, "--json"]) == run.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["costs"]["card"]["memory_bytes"], told["costs"]["gpus"]) == (2 * GIB, 4)
    assert told["costs"]["too_large"] == [told["cells"][1]["cell_key"]]
    assert sum(row["cells"] for row in told["histogram"]) == 2
    assert run.main(flags) == run.OK
    assert "cluster    4 GPUs, 2GiB, 2 GiB each\ntoo large  1 cells fit no GPU" in capsys.readouterr().out
