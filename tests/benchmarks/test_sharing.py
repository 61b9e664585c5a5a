"""What is run and how it is counted; the sweeps themselves need a GPU: `python -m benchmarks sharing`."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import sharing

OPTIONS = argparse.Namespace(
    data="amazon_beauty_5core",
    batch_sizes=[8, 32],
    epochs=2,
    max_length=20,
    hidden_size=32,
    cells=10,
    together=[4, 8],
)


def test_every_way_has_the_same_mix_and_enough_for_its_workers() -> None:
    found = sharing.ways(OPTIONS)
    assert [(way.name, way.together) for way in found] == [
        ("warm", 1),
        ("mps", 4),
        ("mps", 8),
        ("fresh", 1),
        ("turns", 4),
    ]
    for way in found:
        mix = Counter(
            (cell.run.loss.name, cell.run.train.batch_size) for cell in sharing.planned(OPTIONS, way.cells).cells
        )
        assert len(mix) == 6
        assert len(set(mix.values())) == 1
        assert way.cells >= 2 * way.together
        assert way.resources.gpus_per_trial == 1 / way.together
        assert way.resources.mps is (way.name == "mps")


def test_the_count_starts_when_every_worker_has_had_a_cell() -> None:
    ends = [30.0, 10.0, 20.0, 40.0]
    assert sharing.rate(ends, 1) == 3600 * 3 / 30
    assert sharing.rate(ends, 2) == 3600 * 2 / 20


def test_samples_of_the_stretch_alone_count() -> None:
    seen = [(1.0, 0.0), (2.0, 50.0), (3.0, 100.0), (4.0, 0.0)]
    assert sharing.busy(seen, 2.0, 3.5) == 0.75
    assert sharing.busy(seen, 5.0, 6.0) == ""


def test_the_gpu_is_watched_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with sharing.watched() as nothing:
        pass
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nwhile echo 42; do sleep 0.01; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with sharing.watched() as seen:
        deadline = time.monotonic() + 20
        while len(seen) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert nothing == []
    assert {percent for _, percent in seen} == {42.0}


def test_without_a_gpu_there_is_nothing_to_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["sharing"])
    assert sharing.main() == 2
    assert "got no GPU" in capsys.readouterr().err
