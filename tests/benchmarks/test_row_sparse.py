"""`benchmarks.row_sparse`: both steps are Adam's, whoever's rows come twice."""

from __future__ import annotations

import pytest
import torch

from benchmarks import row_sparse


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        row_sparse.main([])
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("lazy", [False, True])
def test_both_ways_take_the_same_step(lazy: bool) -> None:
    row_sparse.Problem(1_003, 5_000, lazy).check()
