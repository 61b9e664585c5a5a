"""A step by stages, metered on the CPU: against the closed forms, against a step of training, and out of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from seqrec import config, losses, models, train
from seqrec.data.batches import CausalBatches
from seqrec.memory import output, synthetic
from seqrec.memory.cases import Case
from seqrec.memory.components import STATE, Breakdown, predict
from seqrec.memory.measure import staged
from seqrec.memory.reference import ReferenceCe
from seqrec.meters import Growth

MakeRun = Callable[..., config.Run]
Meter = Callable[[Callable[[], Any]], tuple[Any, Growth]]

CPU = torch.device("cpu")
TILE_BYTES = 2**24


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("losses.candidates", "losses.ce", "losses.sce", "losses.rece", "memory.losses"):
        monkeypatch.setattr(f"seqrec.{module}.TILE_BYTES", TILE_BYTES)
    monkeypatch.setattr("seqrec.memory.MATRIX_WORKSPACE", 0)


def both(run: config.Run, meter: Meter, *, reference_ce: bool = False) -> tuple[Breakdown, Breakdown]:
    statistics = synthetic.statistics(64, 2000, 32, 20.0)
    measured = staged(run, synthetic.split(statistics), CPU, meter, reference_ce=reference_ce)
    return predict(run, statistics, reference_ce=reference_ce), measured


@pytest.mark.usefixtures("_small_tiles")
def test_the_closed_forms_are_near_what_each_stage_allocates(make_run: MakeRun, loss: str, cpu_meter: Meter) -> None:
    predicted, measured = both(make_run(loss), cpu_meter)
    assert measured.oom is None
    for name in STATE:
        assert predicted.components[name] == pytest.approx(measured.components[name], rel=0.001)
    for name, least, most in (("activations", 0.9, 1.1), ("loss_forward", 0.9, 1.3)):
        assert least < predicted.components[name] / measured.components[name] < most, name
    together = [sum(b.components[name] for name in ("loss_forward", "loss_backward")) for b in (predicted, measured)]
    assert 0.9 < together[0] / together[1] < 1.4
    assert predicted.peak_bytes is not None
    assert measured.peak_bytes is not None
    assert 0.95 < predicted.peak_bytes / measured.peak_bytes < 1.2


@pytest.mark.usefixtures("_small_tiles")
def test_the_published_cross_entropy_allocates_what_its_closed_form_says(make_run: MakeRun, cpu_meter: Meter) -> None:
    predicted, measured = both(make_run(), cpu_meter, reference_ce=True)
    assert predicted.components["loss_forward"] == pytest.approx(measured.components["loss_forward"], rel=0.01)
    assert predicted.components["loss_backward"] == measured.components["loss_backward"] == 0
    assert measured.moment == "loss"


@pytest.mark.parametrize(("batch_size", "n_items"), [(16, 2000), (2, 20_000)])
def test_the_stages_peak_as_high_as_a_step_of_training(
    make_run: MakeRun, loss: str, cpu_meter: Meter, batch_size: int, n_items: int
) -> None:
    """Not the published measurement's higher peak, which keeps gradients from one step to the next."""
    run = make_run(loss, batch_size=batch_size)
    split = synthetic.split(synthetic.statistics(batch_size, n_items, 32, None))
    measured = staged(run, split, CPU, cpu_meter)

    def steps() -> None:
        model = models.build(run.model, split.n_items)
        engine = train.build_engine(run, split, model, CPU)
        engine.run_epoch(1)
        engine.run_epoch(2)

    _, growth = cpu_meter(steps)
    assert measured.peak_bytes == pytest.approx(growth.peak_bytes, rel=0.03)
    assert sum(measured.stack().values()) == measured.peak_bytes


def test_the_state_that_training_reports_is_the_sum_of_its_components(make_run: MakeRun, cpu_meter: Meter) -> None:
    run, split = make_run(), synthetic.split(synthetic.statistics(64, 2000, 32, 20.0))
    engine = train.build_engine(run, split, models.build(run.model, 2000), CPU)
    weights = sum(parameter.nbytes for parameter in engine.model.parameters())
    assert engine.state_bytes() == weights, "before the first step"
    engine.run_epoch(1)
    assert engine.state_bytes() == pytest.approx(staged(run, split, CPU, cpu_meter).state_bytes, rel=1e-3)
    assert engine.state_bytes() == pytest.approx(4 * weights, rel=1e-3)


def test_the_batch_is_the_one_with_the_most_positions(
    make_run: MakeRun, cpu_meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    gather = CausalBatches.gather

    def watch(self: CausalBatches, users: torch.Tensor, size: Any) -> Any:
        seen.append(size.positions)
        return gather(self, users, size)

    monkeypatch.setattr(CausalBatches, "gather", watch)
    run, split = make_run(batch_size=10), synthetic.split(synthetic.statistics(95, 2000, 32, 20.0))
    staged(run, split, CPU, cpu_meter)
    batches = train.build_engine(run, split, models.build(run.model, 2000), CPU).batches
    assert seen == [max(size.positions for size in batches.plan(1).sizes)]


# ------------------------------------------------------------------------------------------------------- out of memory


class Limited:
    """A meter of a device on which one piece of work does not fit."""

    def __init__(self, fails_at: int) -> None:
        self.left = fails_at

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Growth]:
        self.left -= 1
        if self.left < 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return work(), Growth(8, 8)


STEPS = (
    "weights",
    "workspace",
    "data",
    "gradients",
    "optimiser",
    "dropping gradients",
    "batch",
    "drawing",
    "activations",
    "loss_forward",
    "loss_backward",
    "backbone_backward",
    "optimiser_step",
)


@pytest.mark.parametrize(("fails_at", "stage"), list(enumerate(STEPS)))
def test_what_was_reached_is_kept_when_memory_runs_out(make_run: MakeRun, fails_at: int, stage: str) -> None:
    run, statistics = make_run(), synthetic.statistics(64, 500, 32, None)
    found = staged(run, synthetic.split(statistics), CPU, Limited(fails_at))
    assert found.oom == stage
    assert found.peak_bytes is None
    reached = {name for name in STEPS[:fails_at] if name != "dropping gradients"}
    assert found.components.keys() - {"negatives", "loss_gradients"} == reached
    row = output.Row(Case("ce", run, statistics), predict(run, statistics), found)
    lines = {line.split("  ")[0]: line.split() for line in output.table([row]).splitlines()}
    assert lines["oom"][1:] == ["-", *stage.split()]
    assert lines["= peak"][-1] == "-"
    assert lines["optimiser_step"][-1] == "-"
    assert (lines["weights"][-1] == "-") is (fails_at == 0)


def test_another_error_is_not_taken_for_want_of_memory(make_run: MakeRun) -> None:
    def broken(work: Callable[[], Any]) -> tuple[Any, Growth]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    split = synthetic.split(synthetic.statistics(64, 500, 32, None))
    with pytest.raises(RuntimeError, match="illegal"):
        staged(make_run(), split, CPU, broken)


def test_the_whole_step_takes_the_stages_that_the_test_above_names(make_run: MakeRun) -> None:
    split = synthetic.split(synthetic.statistics(64, 500, 32, None))
    assert staged(make_run(), split, CPU, Limited(len(STEPS))).oom is None


# ------------------------------------------------------------------------------------------ the published cross-entropy


def test_the_published_cross_entropy_is_ce(make_run: MakeRun) -> None:
    run, split = make_run(), synthetic.split(synthetic.statistics(64, 500, 32, 12.0))
    engine = train.build_engine(run, split, models.build(run.model, 500), CPU)
    batch = next(iter(engine.batches.epoch(1)))
    hidden, items = torch.randn(len(batch.targets), 32), torch.randn(500, 32)
    ours = losses.build(run.loss, 500).value_and_gradients(hidden, items, batch.targets)
    published = ReferenceCe(batch.windows, 32).value_and_gradients(hidden, items, batch.targets)
    for one, other in zip(ours, published, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_on_a_device_the_prediction_is_near_and_memory_that_runs_out_is_told(make_run: MakeRun) -> None:
    from seqrec.memory.measure import measure

    device = torch.device("cuda")
    run = make_run("ce", batch_size=64, max_length=128, hidden_size=64, keys={"chunk_bytes": 2**27})
    statistics = synthetic.statistics(64, 100_000, 128, None)
    found, expected = measure(run, synthetic.split(statistics), device), predict(run, statistics)
    assert found.oom is None
    assert found.peak_bytes == pytest.approx(expected.peak_bytes, rel=0.1)
    assert found.state_bytes == pytest.approx(expected.state_bytes, rel=0.01)
    reference = measure(run, synthetic.split(statistics), device, reference_ce=True)
    written = predict(run, statistics, reference_ce=True)
    assert reference.components["loss_forward"] == pytest.approx(written.components["loss_forward"], rel=0.05)

    huge = synthetic.statistics(64, 20_000_000, 128, None)
    short = measure(run, synthetic.split(huge), device, reference_ce=True)
    assert short.oom == "loss_forward"
    assert short.components["activations"] > 0
    again = measure(run, synthetic.split(statistics), device)
    assert again.peak_bytes == pytest.approx(found.peak_bytes, rel=0.001), "nothing was left behind"
