"""The main path of one run, whole: real data handling, model, loss and ranking, on a data set of a few hundred rows."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqrec import data, feasibility, models, seeding, train, yamlfile
from seqrec.config import Run, parse
from seqrec.data import splits
from seqrec.data.batches import CausalBatches
from seqrec.data.tables import Holdout, Interactions, Split
from seqrec.errors import CheckpointError, DivergedError, InfeasibleError, UserError
from seqrec.evaluate import evaluate
from seqrec.reports import EpochReport, RunReport

N_USERS, N_ITEMS = 40, 24
LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "bce": {"n_negatives": 4},
    "ce_minus": {"n_negatives": 4},
    "sce": {"n_buckets": 6, "bucket_size_x": 8, "bucket_size_y": 8, "mix_x": True},
    "rece": {"n_buckets": 4, "rounds": 2},
}


@pytest.fixture(scope="module")
def split() -> Split:
    """Every user walks through the catalog in steps of one: the next item follows from the last one alone."""
    lengths = 5 + np.arange(N_USERS) % 7
    user = np.repeat(np.arange(N_USERS), lengths)
    time = np.concatenate([np.arange(length) for length in lengths])
    item = (np.repeat(np.arange(N_USERS) * 5, lengths) + time) % N_ITEMS
    return splits.leave_one_out(
        Interactions(user.astype(np.int64), item.astype(np.int64), time.astype(np.int64), True, "walk", "0" * 64)
    )


def make(loss: str = "ce", **changes: Any) -> Run:
    """A small run; `changes` by dotted key with a double underscore: train__epochs=3."""
    tree: dict[str, Any] = {
        "data": {"path": "walk"},
        "model": {"name": "sasrec", "max_length": 6, "hidden_size": 16, "n_blocks": 1, "dropout": 0.2},
        "loss": {"name": loss, **LOSSES[loss]},
        "train": {"seed": 1, "batch_size": 16, "epochs": 2, "learning_rate": 0.01},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return parse(tree)


def numbers(report: RunReport) -> dict[str, float]:
    """What a run computed, without what the clock said."""
    rows = {f"{past.epoch} {k}": v for past in report.history for k, v in past.metrics.items()}
    return {k: v for k, v in (report.metrics | rows).items() if "time/" not in k and not k.endswith("elapsed_s")}


@pytest.mark.parametrize("mask_padding", [False, True])
def test_a_run_learns_and_tests_its_best_weights_once(split: Split, mask_padding: bool) -> None:
    run = make(train__epochs=30, train__patience=None, model__mask_padding=mask_padding, evaluation__exclude_seen=False)
    report = train.train(run, split=split, device="cpu")
    metrics = report.metrics
    assert metrics["test/ndcg_at_10"] > 0.8
    assert metrics["best/ndcg_at_10"] == max(past.metrics["valid/ndcg_at_10"] for past in report.history)
    assert metrics["best/ndcg_at_10"] == report.history[int(metrics["best/epoch"]) - 1].metrics["valid/ndcg_at_10"]
    assert report.history[-1].metrics["train/loss"] < 0.7 * report.history[0].metrics["train/loss"]
    assert metrics["memory/predicted_gib"] > 0
    assert "memory/peak_gib" not in metrics, "on CPU nothing measures memory"
    assert {"test/coverage_at_10", "best/elapsed_s", "time/epoch_s", "time/elapsed_s"} <= metrics.keys()


def test_the_test_metrics_are_the_best_weights_on_the_test_items(split: Split, tmp_path: Path) -> None:
    run = make(train__epochs=3, train__learning_rate=0.3, train__seed=0)
    report = train.train(run, split=split, workdir=tmp_path, device="cpu")
    assert report.metrics["best/epoch"] < 3, "this test needs a run whose last epoch is not its best"
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    model = models.build(run.model, split.n_items)

    def mrr(weights: dict[str, torch.Tensor], holdout: Holdout) -> float:
        model.load_state_dict(weights)
        found = evaluate(
            model, holdout, n_items=split.n_items, max_length=6, exclude_seen=True, batch_size=7, device="cpu"
        )
        return found["mrr_at_10"]

    assert report.metrics["test/mrr_at_10"] == pytest.approx(mrr(saved["best"], split.test), rel=1e-6)
    assert report.metrics["best/mrr_at_10"] == pytest.approx(mrr(saved["best"], split.valid), rel=1e-6)
    others = [mrr(saved["best"], split.valid), mrr(saved["engine"]["model"], split.test)]
    assert all(abs(other - report.metrics["test/mrr_at_10"]) > 1e-6 for other in others)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("loss", LOSSES)
def test_a_resumed_run_is_bit_equal_to_one_without_interruption(split: Split, loss: str, tmp_path: Path) -> None:
    """Dropout, order, negatives, projections, optimiser: all of it goes on as if nothing had happened."""
    run = make(loss, train__epochs=6)
    straight = train.train(run, split=split, workdir=tmp_path / "straight", device="cpu")

    def die_after_3(report: EpochReport) -> None:
        if report.epoch == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train.train(run, split=split, workdir=tmp_path / "killed", device="cpu", on_epoch=die_after_3)
    torch.rand(7)  # what the process did in between is of no consequence
    resumed = train.train(run, split=split, workdir=tmp_path / "killed", device="cpu")
    assert numbers(resumed) == numbers(straight)
    one, other = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["engine"] for name in ("straight", "killed")
    )
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    for optimizer, twin in zip(one["optimizers"], other["optimizers"], strict=True):
        for number, state in optimizer["state"].items():
            assert all(torch.equal(state[name], twin["state"][number][name]) for name in state)


def test_the_seed_decides_everything_and_nothing_leaks_out(split: Split) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = train.train(make("bce"), split=split, device="cpu")
    assert torch.equal(torch.rand(3), expected), "the caller's generator was disturbed"
    assert numbers(train.train(make("bce"), split=split, device="cpu")) == numbers(first)
    assert numbers(train.train(make("bce", train__seed=2), split=split, device="cpu")) != numbers(first)


def test_every_epoch_of_every_seed_draws_its_own_randomness() -> None:
    """A stream that starts anew each epoch would show the same negatives, dropout or projections over and over."""

    def draws(seed: int, epoch: int) -> list[float]:
        streams = seeding.begin_epoch(seed, epoch, torch.device("cpu"))
        return [float(torch.rand((), generator=g)) for g in (None, streams.negatives, streams.loss)]

    with seeding.isolated(torch.device("cpu")):
        seen = [value for seed in (1, 2) for epoch in (1, 2, 3) for value in draws(seed, epoch)]
        assert len(set(seen)) == len(seen)
        assert draws(2, 3) == seen[-3:]


def test_settings_reach_the_optimizer(split: Split) -> None:
    run = make(train__learning_rate=0.02, train__beta1=0.8, train__beta2=0.95, train__weight_decay=0.1)
    model = models.build(run.model, split.n_items)
    defaults = train.build_engine(run, split, model, torch.device("cpu")).optimizers[0].defaults
    assert (defaults["lr"], defaults["betas"], defaults["weight_decay"]) == (0.02, (0.8, 0.95), 0.1)
    assert defaults["eps"] == 1e-8


def test_an_epoch_is_plain_adam_on_the_mean_loss(split: Split) -> None:
    """The slow twin of an epoch, on padded states and torch's own cross-entropy. In float64, for Adam turns the
    rounding noise of a gradient that should be 0 (the key bias's) into whole steps."""
    run = make(model__dropout=0.0, train__batch_size=16)
    torch.manual_seed(0)
    model, twin = (models.build(run.model, split.n_items).double() for _ in range(2))
    twin.load_state_dict(model.state_dict())
    engine = train.build_engine(run, split, model, torch.device("cpu"))
    mean = engine.run_epoch(1)
    adam = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.9, 0.98))
    total, count = 0.0, 0
    batches = CausalBatches(split.train, max_length=6, batch_size=16, drop_last=False, seed=1, device="cpu")
    for batch in batches.epoch(1):
        adam.zero_grad()
        hidden = twin.states(batch.windows)
        loss = torch.nn.functional.cross_entropy(hidden @ twin.item_embeddings().T, batch.targets)
        loss.backward()
        adam.step()
        total, count = total + loss.item() * len(batch.targets), count + len(batch.targets)
    assert mean == pytest.approx(total / count, rel=1e-9)
    for (name, weight), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-8, msg=name)


def test_divergence_is_an_error_that_names_the_epoch(split: Split) -> None:
    reported: list[EpochReport] = []
    with pytest.raises(DivergedError, match=r"got \S+ in epoch 1; expected a finite number|not finite in epoch 1"):
        train.train(make(train__learning_rate=1e38), split=split, device="cpu", on_epoch=reported.append)
    assert reported == []


def test_a_broken_parameter_is_noticed_even_if_the_loss_is_finite(split: Split) -> None:
    run = make()
    model = models.build(run.model, split.n_items)
    engine = train.build_engine(run, split, model, torch.device("cpu"))
    model.get_parameter("position_table").data[0] = math.inf
    with pytest.raises(DivergedError, match="position_table: got a value that is not finite in epoch 4"):
        engine._check_finite(1.0, 4)


def test_what_cannot_exist_is_refused_before_training(split: Split) -> None:
    with pytest.raises(InfeasibleError, match=r"train\.batch_size: got 41"):
        train.train(make(train__batch_size=41, train__drop_last=True), split=split, device="cpu")
    for name in ("cuda:99", "quantum", "meta"):
        with pytest.raises(UserError, match=f"device: got '{name}'; expected"):
            train.train(make(), split=split, device=name)


@pytest.mark.parametrize(
    ("key", "value", "law"),
    [("engine", "captured", "auto or eager on cpu, which has no graphs"), ("kernels", "fused", "a CUDA device")],
)
def test_what_needs_a_gpu_is_refused_without_one(split: Split, key: str, value: str, law: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"train.{key}: got {value!r}; expected {law}.")):
        train.train(make(**{f"train__{key}": value}), split=split, device="cpu")


def test_a_workdir_serves_one_configuration(split: Split, tmp_path: Path) -> None:
    train.train(make(), split=split, workdir=tmp_path, device="cpu")
    with pytest.raises(CheckpointError, match=r"run\.train\.seed: 1 in the file, 9 now"):
        train.train(make(train__seed=9), split=split, workdir=tmp_path, device="cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration on disk, with its data beside it."""
    folder = tmp_path_factory.mktemp("run")
    user = np.repeat(np.arange(12), 6)
    rows = [f"{u},{(u * 3 + t) % 10},{t}" for u, t in zip(user, np.tile(np.arange(6), 12), strict=True)]
    source, prepared, path = folder / "walk.csv", folder / "walk.parquet", folder / "run.yaml"
    source.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    command = [sys.executable, "-m", "seqrec.data", "prepare", str(source), "--out", str(prepared)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(
        f"data: {{path: {prepared}}}\n"
        "model: {name: sasrec, max_length: 4, hidden_size: 8}\n"
        "loss: {name: ce}\n"
        "train: {epochs: 1, learning_rate: 1e-2, batch_size: 4}\n"
    )
    return path


def test_the_command_trains_and_prints_json(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(written), "--device", "cpu", "--workdir", str(tmp_path / "w"), "--set", "train.epochs=2"]
    assert train.main(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["epochs"] == 2
    assert {"best/epoch", "test/ndcg_at_10", "memory/predicted_gib"} <= result["metrics"].keys()
    assert [line.split("  ")[0] for line in err.splitlines()] == ["epoch 1", "epoch 2"]
    assert (tmp_path / "w" / "last.pt").exists()


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("train.epoch=2", "train.epoch: unknown key. hint: did you mean train.epochs?"),
        ("train.epochs=0", "train.epochs: got 0; expected a number >= 1."),
        ("train.epochs", "--set: got 'train.epochs'; expected KEY=VALUE"),
        ("loss.name.x=1", "--set loss.name.x: got 'ce'; expected a mapping at name."),
        ("train.epochs=[", "--set train.epochs=[: line 1 is not valid YAML"),
        ("data.path=nowhere.parquet", "nowhere.parquet"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    written: Path, capsys: pytest.CaptureFixture[str], assignment: str, says: str
) -> None:
    assert train.main([str(written), "--set", assignment]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_the_documented_run_can_exist() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "training.md").read_text(encoding="utf-8")
    documented = text.split("```yaml\n")[1].split("```")[0]
    run = parse(yamlfile.loads(documented, "docs/training.md"))
    feasibility.check(run, data.statistics(run.data))
    assert run.loss.name == "ce"
