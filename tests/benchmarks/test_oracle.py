"""The memory oracle's gate as far as a CPU can run it: its cells, the epochs it cuts, its verdict."""

from __future__ import annotations

import pytest
import torch

from benchmarks import oracle
from benchmarks.oracle_cells import cells, split
from seqrec import config, feasibility
from seqrec.data.batches import CausalBatches


def test_the_cells_span_the_grids_and_can_exist() -> None:
    found = cells()
    assert len(found) >= 60
    assert len({cell.name for cell in found}) == len(found)
    runs = [cell.run() for cell in found]
    assert {run.loss.name for run in runs} == set(config.LOSSES)
    assert {run.train.batch_size for run in runs} >= {8, 64, 128, 256, 512, 1024}
    assert {run.model.name for run in runs} == set(config.MODELS)
    assert {run.model.hidden_size for run in runs} == {64, 128, 256}
    assert {run.train.kernels for run in runs} == {"auto", "eager"}
    for cell, run in zip(found, runs, strict=True):
        if cell.catalog != "173k":
            feasibility.check(run, split(cell.catalog).statistics)


def test_an_epoch_is_cut_to_its_first_batch_and_its_largest() -> None:
    of = split("12k")
    batches = CausalBatches(of.train, max_length=50, batch_size=64, drop_last=False, seed=3, device="cpu")
    whole = batches.plan(1)
    short = oracle.cut(whole, 64)
    largest = max(size.positions for size in whole.sizes)
    assert [size.positions for size in short.sizes] == [whole.sizes[0].positions, largest]
    assert len(short.users) == len(whole.users)
    batch = batches.gather(short.users[64:128], short.sizes[1])
    assert len(batch.windows.items) == largest
    assert int(batch.windows.offsets[-1]) == largest, "the users are those of the largest batch"


def test_the_verdict_is_the_gate() -> None:
    assert oracle.summary([0.01, -0.01, 0.3])[1]
    assert not oracle.summary([0.01, -0.06, 0.0])[1], "one prediction is too low"
    assert not oracle.summary([0.03, 0.03, 0.0])[1], "the median is too far off"
    assert not oracle.summary([])[1]


def test_what_runs_out_of_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> dict[str, int]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(oracle, "measure", full)
    row = oracle.row_of(cells()[0], torch.device("cpu"))
    assert (row["outcome"], row["error"], row["peak_bytes"]) == ("oom", "", "")
    assert int(str(row["predicted_bytes"])) > 0


def test_another_error_is_not_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> dict[str, int]:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(oracle, "measure", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        oracle.row_of(cells()[0], torch.device("cpu"))
