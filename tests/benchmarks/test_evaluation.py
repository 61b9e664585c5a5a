"""The benchmark of evaluation runs, checks itself against its twin, and writes rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import evaluation
from seqrec.ranking import Ranker


def test_tiny_shapes_run_anywhere_and_leave_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluation.main(["--tiny", "--results", str(tmp_path)]) == 0
    with (tmp_path / "evaluation.csv").open(newline="") as handle:
        found = list(csv.DictReader(handle))
    assert [int(row["n_items"]) for row in found] == [case.n_items for case in evaluation.TINY]
    assert all(float(row["seconds"]) > 0 and int(row["predicted_bytes"]) > 0 for row in found)
    assert len({int(row["tile_items"]) for row in found}) == 3, "in one tile, and in several"
    assert capsys.readouterr().out.count("n_items=") == len(found)


def test_a_wrong_rank_is_found_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Ranker.rank

    def off_by_one(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        ranks, lists = right(*arguments)
        return ranks + 1, lists

    monkeypatch.setattr(Ranker, "rank", off_by_one)
    monkeypatch.setattr(evaluation, "measure", lambda *_: pytest.fail("timed what is wrong"))
    with pytest.raises(ValueError, match="than the twin's"):
        evaluation.main(["--tiny"])
