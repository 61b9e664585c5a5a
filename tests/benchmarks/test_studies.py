"""The runner of studies, with a configuration that takes seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import studies
from benchmarks.configurations import Configuration


def configuration(label: str, *, in_grid: bool = False, **loss: object) -> Configuration:
    return Configuration(
        "beauty",
        label,
        {
            "data": {"path": "amazon_beauty_5core"},
            "model": {"name": "sasrec", "max_length": 4, "hidden_size": 16, "n_blocks": 1, "n_heads": 1},
            "loss": {"name": "bce", "n_negatives": 1} | loss,
            "train": {"batch_size": 2048, "epochs": 1},
        },
        in_grid=in_grid,
    )


def options(results: Path, **changed: object) -> argparse.Namespace:
    plain = {
        "gpus": 1,
        "processes": 1,
        "seeds": 2,
        "deadline": 1e9,
        "grace": 60.0,
        "results": results,
        "times": None,
        "kernels": "eager",
    }
    return argparse.Namespace(**plain | changed)


def seen(results: Path) -> list[tuple[str, int]]:
    table = pd.read_csv(results / "studies.csv")
    return list(zip(table["configuration"], table["seed"], strict=True))


@pytest.mark.slow
def test_every_seed_once_and_of_a_grid_only_the_best_cells_others(tmp_path: Path) -> None:
    grid = [configuration("bad", in_grid=True), configuration("good", in_grid=True)]
    grid[0].tree["train"]["learning_rate"] = 1e-9
    chosen = [configuration("plain"), *grid]
    assert studies.run(chosen, options(tmp_path)) == 0
    assert sorted(seen(tmp_path)) == [("bad", 1235), ("good", 37), ("good", 1235), ("plain", 37), ("plain", 1235)]
    before = seen(tmp_path)
    assert studies.run(chosen, options(tmp_path)) == 0, "nothing is left to do"
    assert seen(tmp_path) == before
    assert not studies.known(tmp_path / "studies.csv", "fused"), "with other kernels it is another run"


@pytest.mark.slow
def test_a_run_that_fails_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    chosen = [configuration("impossible", name="sce", n_negatives=1), configuration("plain")]
    assert studies.run(chosen, options(tmp_path, seeds=1)) == 1
    assert seen(tmp_path) == [("plain", 1235)]


def test_after_the_deadline_nothing_is_started(tmp_path: Path) -> None:
    assert studies.run([configuration("plain")], options(tmp_path, deadline=-1.0)) == 2
    assert not list(tmp_path.iterdir())
