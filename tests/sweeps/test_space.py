"""From a search space to cells: the product, what is left out of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seqrec import feasibility, memory
from seqrec.config import parse
from seqrec.data.tables import Statistics
from sweeps import cells, space, spec
from sweeps.errors import SpecError
from sweeps.space import Plan

STATISTICS = Statistics(
    name="tiny",
    digest="d" * 64,
    n_users=100,
    n_interactions=1_040,
    n_items=50,
    n_train_users=80,
    train_lengths=((2, 40), (5, 40)),
)


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    def make(text: str, *overrides: str, statistics: Statistics = STATISTICS) -> Plan:
        path = tmp_path / "space.yaml"
        path.write_text("data: {path: tiny.parquet, split: temporal, quantile: 0.9}\n" + text)
        return space.plan(spec.load(path, overrides), statistics)

    return make


def test_product_in_order_of_declaration_seeds_fastest(plan: Any) -> None:
    made = plan("loss: {name: ce}\ngrid: {train.batch_size: [8, 4], model.dropout: [0.2, 0.1]}\nseeds: [2, 1]\n")
    assert [(c.run.train.batch_size, c.run.model.dropout, c.run.train.seed) for c in made.cells] == [
        (batch_size, dropout, seed) for batch_size in (8, 4) for dropout in (0.2, 0.1) for seed in (2, 1)
    ]
    assert made.points == 8


def test_a_cell_is_whole(plan: Any) -> None:
    made = plan(
        "loss: {name: rece, rounds: 3}\nderived: {loss.n_buckets: batch_size * interactions_per_user / 2}\n"
        "grid: {train.batch_size: [8]}\nseeds: [5]\n"
    )
    (cell,) = made.cells
    assert cell.run == parse(
        {
            "data": {"path": "tiny.parquet", "split": "temporal", "quantile": 0.9},
            "model": {"name": "sasrec"},
            "loss": {"name": "rece", "rounds": 3, "n_buckets": 40},
            "train": {"batch_size": 8, "seed": 5},
        }
    )
    assert cell.parameters == {"loss.name": "rece", "train.batch_size": 8, "loss.n_buckets": 40, "train.seed": 5}
    assert type(cell.parameters["loss.n_buckets"]) is int
    assert (cell.cell_key, cell.configuration_key) == cells.keys(cell.run, STATISTICS.digest)
    assert cell.predicted_bytes == memory.predict_peak(cell.run, STATISTICS).peak_bytes
    assert (made.statistics, made.data_path) == (STATISTICS, "tiny.parquet")


def test_replicates_share_their_configuration(plan: Any) -> None:
    made = plan("loss: {name: ce}\ngrid: {train.batch_size: [8, 4]}\nseeds: [1, 2, 3]\n")
    assert len({cell.cell_key for cell in made.cells}) == 6
    assert [cell.configuration_key for cell in made.cells[:3]] == [made.cells[0].configuration_key] * 3
    assert len({cell.configuration_key for cell in made.cells}) == 2
    assert all((cell.cell_key, cell.configuration_key) == cells.keys(cell.run, "d" * 64) for cell in made.cells)


def test_expressions_may_read_the_seed(plan: Any) -> None:
    made = plan("loss: {name: rece}\nderived: {loss.n_buckets: seed * 2}\nseeds: [3, 4]\nconstraints: [seed > 3]\n")
    assert [(cell.run.train.seed, cell.run.loss.n_buckets) for cell in made.cells] == [(4, 8)]
    assert [parameters["train.seed"] for parameters, _ in made.dropped] == [3]


def test_expressions_may_read_defaults_data_and_each_other(plan: Any) -> None:
    made = plan(
        "loss: {name: sce, bucket_size_y: 4}\nseeds: [1]\n"
        "derived: {loss.bucket_size_x: n_buckets + 1, loss.n_buckets: max_length + n_items + data.quantile * 10}\n"
    )
    assert made.cells[0].run.loss.n_buckets == 200 + 50 + 9
    assert made.cells[0].run.loss.bucket_size_x == 260


def test_expressions_read_what_null_stands_for(plan: Any) -> None:
    text = "loss: {name: sce, bucket_size_x: 3, bucket_size_y: 4}\nderived: {loss.n_buckets: data.quantile * 100}\n"
    assert plan(text, "data.quantile=null").cells[0].run.loss.n_buckets == 95
    replay = ("data.quantile=null", "data.split=replay")
    made = plan(text, *replay)
    assert made.cells[0].run.loss.n_buckets == 90
    assert made.cells[0].cell_key == plan(text, *replay, "data.split_seed=42").cells[0].cell_key
    assert made.cells[0].cell_key != plan(text, *replay, "data.split_seed=43").cells[0].cell_key
    with pytest.raises(SpecError, match=r"derived\.loss\.n_buckets: .*data\.quantile.*null"):
        plan(text, "data.quantile=null", "data.split=leave_one_out")


def test_every_point_is_in_exactly_one_place(plan: Any) -> None:
    made = plan(
        """
seeds: [1, 2]
constraints: ["batch_size != 16"]
blocks:
  - loss: {name: ce_minus}
    grid: {train.batch_size: [8, 16], loss.n_negatives: [4, 60, 8]}
  - loss: {name: ce_minus, n_negatives: 8}
    grid: {train.batch_size: [4, 8]}
"""
    )
    kept = [(cell.run.train.batch_size, cell.run.loss.n_negatives) for cell in made.cells]
    assert kept == [(8, 4), (8, 4), (8, 8), (8, 8), (4, 8), (4, 8)]
    assert made.duplicates == 2
    assert [check for _, check in made.dropped] == ["batch_size != 16"] * 6
    assert made.dropped[0][0] == {
        "loss.name": "ce_minus",
        "train.batch_size": 16,
        "loss.n_negatives": 4,
        "train.seed": 1,
    }
    law = feasibility.violations(made.cells[0].run.model_copy(update={"loss": _negatives(made, 60)}), STATISTICS)
    assert [(p["loss.n_negatives"], laws) for p, laws in made.infeasible] == [(60, " ".join(law))] * 2
    assert made.points == 6 + 2 + 6 + 2 == 16


def _negatives(made: Plan, count: int) -> Any:
    return made.cells[0].run.loss.model_copy(update={"n_negatives": count})


def test_a_constraint_drops_what_cannot_exist(plan: Any) -> None:
    text = "loss: {name: ce_minus}\ngrid: {loss.n_negatives: [4, 60]}\nseeds: [1]\n"
    assert len(plan(text).infeasible) == 1
    made = plan(text + "constraints: [n_negatives < catalog_size / 2]\n")
    assert (len(made.cells), len(made.dropped), made.infeasible) == (1, 1, ())


def test_a_constraint_drops_cells_whose_expressions_would_fail(plan: Any) -> None:
    text = "loss: {name: rece}\nderived: {loss.n_buckets: int(64 / (8 - batch_size))}\nseeds: [1]\n"
    text += "grid: {train.batch_size: [4, 8]}\n"
    with pytest.raises(SpecError, match="divides by zero"):
        plan(text)
    made = plan(text + "constraints: [batch_size != 8]\n")
    assert (len(made.cells), len(made.dropped)) == (1, 1)


def test_a_constraint_drops_derived_values_out_of_range(plan: Any) -> None:
    text = "loss: {name: rece}\nderived: {loss.n_buckets: batch_size - 8}\ngrid: {train.batch_size: [8, 9]}\n"
    made = plan(text + "seeds: [1]\nconstraints: [n_buckets > 0]\n")
    assert (len(made.cells), made.dropped[0][0]["loss.n_buckets"]) == (1, 0)


def test_keys_do_not_depend_on_where_the_data_lies(plan: Any) -> None:
    text = "loss: {name: ce}\nseeds: [1]\n"
    here, there = plan(text), plan(text, "data.path=elsewhere.parquet")
    assert here.cells[0].cell_key == there.cells[0].cell_key
    assert plan(text, "data.quantile=0.8").cells[0].cell_key != here.cells[0].cell_key


def test_a_blocks_own_values_are_parameters(plan: Any) -> None:
    made = plan(
        "train: {epochs: 3}\nseeds: [1]\n"
        "blocks:\n  - {loss: {name: gbce, n_negatives: 4}, train: {patience: null}}\n  - {loss: {name: ce}}\n"
    )
    assert [cell.parameters for cell in made.cells] == [
        {"loss.name": "gbce", "loss.n_negatives": 4, "train.seed": 1},
        {"loss.name": "ce", "train.seed": 1},
    ]
    assert made.cells[0].run.train.patience is None


@pytest.mark.parametrize(
    ("text", "law"),
    [
        (
            "loss: {name: rece}\nderived: {loss.n_buckets: batch_size / 3}\ngrid: {train.batch_size: [6, 8]}\n",
            r"derived\.loss\.n_buckets: got 'batch_size / 3' with train\.batch_size = 8, which is 2\.6.*; expected",
        ),
        (
            "loss: {name: rece}\nderived: {loss.n_buckets: batch_size - 8}\ngrid: {train.batch_size: [9, 8]}\n",
            r"derived\.loss\.n_buckets: got 0; expected a number >= 1, in the cell train\.batch_size = 8\. hint: a",
        ),
        (
            "loss: {name: rece}\nderived: {loss.n_buckets: batch_size > 8}\n",
            r"derived\.loss\.n_buckets: got True; expected an integer",
        ),
        (
            "loss: {name: ce_minus, n_negatives: 4}\nderived: {loss.sampling: '3'}\n",
            r"derived\.loss\.sampling: got 3; expected 'uniform', 'popularity' or 'in_batch'",
        ),
        (
            "loss: {name: rece, n_buckets: 9}\ngrid: {loss.buckets_per_chunk: [3, 2]}\n",
            r"grid\.loss\.buckets_per_chunk: got 2; expected a divisor of loss\.n_buckets \(9\), in the cell",
        ),
    ],
)
def test_a_value_that_breaks_its_law_in_some_cell(plan: Any, text: str, law: str) -> None:
    with pytest.raises(SpecError, match=rf"space\.yaml: {law}"):
        plan(text)


def test_a_bool_may_be_derived(plan: Any) -> None:
    made = plan(
        "loss: {name: sce, n_buckets: 4, bucket_size_x: 4, bucket_size_y: 4}\nseeds: [1]\n"
        "grid: {train.batch_size: [8, 16]}\nderived: {loss.mix_x: batch_size > 8}\n"
    )
    assert [cell.run.loss.mix_x for cell in made.cells] == [False, True]


def test_work_is_done_once_a_configuration(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred seeds cost one validation, one feasibility check and one prediction: thousands of cells plan fast."""
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a: (calls.append(name), plain(*a))[1])

    for module, name in ((space.config, "parse"), (feasibility, "violations"), (memory, "predict_peak")):
        counted(module, name)
    made = plan(f"loss: {{name: ce}}\ngrid: {{train.batch_size: [4, 8]}}\nseeds: {list(range(100))}\n")
    assert len(made.cells) == 200
    assert sorted(calls) == ["parse", "parse", "predict_peak", "predict_peak", "violations", "violations"]


MIXED = """
loss: {name: ce}
seeds: [1]
blocks:
  - model: {name: sasrec}
  - model: {name: bert4rec, hidden_size: 8}
    grid: {model.mask_probability: [0.2, 0.4]}
"""


def test_models_side_by_side_are_told_apart(plan: Any) -> None:
    labels = [cell.label for cell in plan(MIXED).cells]
    assert labels == [
        "ce b128 model sasrec s1",
        "ce b128 model bert4rec hidden_size 8 mask_probability 0.2 s1",
        "ce b128 model bert4rec hidden_size 8 mask_probability 0.4 s1",
    ]


def test_an_override_of_a_models_key_reaches_the_blocks_whose_model_has_it(plan: Any) -> None:
    made = plan(MIXED, "model.mask_probability=0.3", "model.max_length=7")
    first, second = (cell.run.model for cell in made.cells)
    assert first.name == "sasrec"
    assert (second.name, second.mask_probability) == ("bert4rec", 0.3)
    assert first.max_length == second.max_length == 7
    unnamed = plan(MIXED.replace("model: {name: sasrec}", "train: {epochs: 1}"), "model.mask_padding=true")
    assert unnamed.cells[0].run.model.mask_padding, "a block that names no model has the default one"
    assert unnamed.cells[1].run.model.name == "bert4rec"
    with pytest.raises(SpecError, match=r"--set model\.mask_padding: unknown key of model bert4rec.*belongs to sasrec"):
        plan("loss: {name: ce}\nmodel: {name: bert4rec}\n", "model.mask_padding=true")
