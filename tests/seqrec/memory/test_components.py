"""The components against the prediction that they are parts of, and the published cross-entropy against a twin."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from seqrec import config, memory
from seqrec.memory import synthetic
from seqrec.memory.components import MEANINGS, RESIDENT, STAGES, Breakdown, predict, value_work

MakeRun = Callable[..., config.Run]

SIZES = [(8, 200_000), (64, 2000), (256, 2000)]


@pytest.mark.parametrize(("batch_size", "n_items"), SIZES)
def test_they_peak_where_and_as_high_as_the_prediction_does(
    make_run: MakeRun, loss: str, batch_size: int, n_items: int
) -> None:
    run = make_run(loss, batch_size=batch_size)
    statistics = synthetic.statistics(300, n_items, 32, 20.0)
    whole, found = memory.predict_peak(run, statistics), predict(run, statistics)
    assert found.peak_bytes == whole.peak_bytes
    moments = {"draw": "drawing", "loss": "loss", "attention": "backbone_backward", "embedding": "backbone_backward"}
    assert found.moment == moments[whole.moment]
    assert sum(found.stack().values()) == whole.peak_bytes
    for name in RESIDENT:
        assert found.components[name] == whole.parts[name], name
    if whole.moment == "loss":
        work = found.components["loss_forward"] + found.components["loss_backward"]
        assert work == whole.parts["gradients"] + whole.parts["work"]
        assert found.components["activations"] == whole.parts["activations"]


def test_some_of_the_sizes_peak_in_each_of_the_likely_stages(make_run: MakeRun) -> None:
    """Else the test above would show less than it says."""
    runs = [(make_run("ce", batch_size=batch_size), n_items) for batch_size, n_items in SIZES]
    stages = {predict(run, synthetic.statistics(300, n_items, 32, 20.0)).moment for run, n_items in runs}
    assert stages == {"loss", "backbone_backward"}


def test_every_component_is_told_and_none_is_negative(make_run: MakeRun, loss: str) -> None:
    found = predict(make_run(loss), synthetic.statistics(64, 2000, 32, None))
    assert list(found.components) == list(MEANINGS)
    assert min(found.components.values()) >= 0
    assert set(found.peaks) == set(STAGES)
    assert found.state_bytes == 16 * memory.n_parameters(make_run().model, 2000)


def test_importing_them_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, seqrec.memory.components; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_document_knows_every_component_and_stage() -> None:
    text = (Path(__file__).parents[3] / "docs" / "memory.md").read_text(encoding="utf-8")
    missing = [name for name in MEANINGS if f"| `{name}` |" not in text]
    missing += [stage for stage in STAGES if f"\n    {stage} " not in text]
    assert not missing, f"docs/memory.md: {', '.join(missing)}: missing."


@pytest.mark.parametrize("n_items", [2000, 300_000])
@pytest.mark.parametrize("batch_size", [1, 64, 512])
def test_a_value_takes_something_and_never_more_than_value_and_gradients(
    make_run: MakeRun, loss: str, batch_size: int, n_items: int
) -> None:
    run = make_run(loss, batch_size=batch_size)
    shapes = memory.step_shapes(run, synthetic.statistics(batch_size, n_items, 32, None))
    assert 0 < value_work(run.loss, shapes) <= memory.loss_work(run.loss, shapes)


def test_what_ran_out_of_memory_has_no_peak_but_what_it_reached() -> None:
    reached = {"weights": 3, "gradients": 3, "optimiser": 6, "data": 1, "activations": 5}
    found = Breakdown(reached, {"drawing": 11, "forward": 16}, oom="loss_forward")
    assert found.peak_bytes is None
    assert found.moment is None
    assert found.state_bytes == 12
    assert found.stack() == {"weights": 3, "optimiser": 6, "data": 1, "gradients": 3, "activations": 5}
    assert Breakdown({"weights": 3}, {}, oom="gradients").state_bytes is None


def test_what_no_component_explains_is_told_as_other(make_run: MakeRun) -> None:
    found = predict(make_run(), synthetic.statistics(64, 2000, 32, None))
    assert found.moment is not None
    measured = Breakdown(found.components, {**found.peaks, found.moment: found.peaks[found.moment] + 7})
    assert measured.stack()["other"] == 7
    assert sum(measured.stack().values()) == measured.peak_bytes


# ------------------------------------------------------------------------------------------ the published cross-entropy


@pytest.mark.parametrize("length_mean", [None, 12.0], ids=["no pads", "mostly pads"])
def test_the_published_cross_entropy_takes_what_a_twin_keeps_and_makes(
    make_run: MakeRun, length_mean: float | None
) -> None:
    V, D, run = 500, 32, make_run()
    statistics = synthetic.statistics(64, V, 32, length_mean)
    shapes = memory.step_shapes(run, statistics)
    valid = torch.zeros(64 * 32, dtype=torch.bool)
    valid[torch.randperm(64 * 32)[: shapes.positions]] = True
    grid, items = torch.randn(64 * 32, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.data_ptr() != items.data_ptr() and tensor.numel() > 1:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = grid @ items.T
        rows = logits[valid]
        F.cross_entropy(rows, torch.zeros(len(rows), dtype=torch.int64))
    predicted = predict(run, statistics, reference_ce=True).components["loss_forward"]
    assert predicted == sum(saved.values()) + logits.nbytes + rows.nbytes


def test_the_published_cross_entropy_needs_three_copies_of_its_logits(make_run: MakeRun) -> None:
    found = predict(make_run(batch_size=128), synthetic.statistics(128, 100_000, 32, None), reference_ce=True)
    logits = 4 * 128 * 32 * 100_000
    assert found.components["loss_forward"] == pytest.approx(3 * logits, rel=0.001)
    assert found.moment == "loss"
    fewer = predict(make_run(batch_size=128), synthetic.statistics(128, 100_000, 32, 12.0), reference_ce=True)
    assert logits < fewer.components["loss_forward"] < 2.5 * logits, "pads cost one copy, valid positions three"


# -------------------------------------------------------------------------------------------------------------- data


def test_synthetic_histories_have_the_mean_that_was_asked_for() -> None:
    statistics = synthetic.statistics(1000, 500, 50, 40.0)
    assert statistics.n_interactions / 1000 == pytest.approx(40, rel=0.02)
    split = synthetic.split(statistics)
    assert sorted(split.train.lengths.tolist()) == [
        length for length, users in statistics.train_lengths for _ in range(users)
    ]
    assert (split.train.items.min() >= 0, split.train.items.max() < 500, len(split.train.items)) == (
        True,
        True,
        statistics.n_interactions,
    )
    full = synthetic.statistics(7, 500, 50, None)
    assert full.train_lengths == ((51, 7),), "50 inputs and a target"
