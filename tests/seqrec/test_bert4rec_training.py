"""BERT4Rec through the main path of a run, with every loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqrec import models, train
from seqrec.config import LOSSES as KINDS, Run, parse
from seqrec.data import splits
from seqrec.data.cloze import ClozeBatches
from seqrec.data.tables import Interactions, Split
from seqrec.reports import EpochReport, RunReport

N_USERS, N_ITEMS = 80, 24
LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "cce": {"block_items": 7},
    "bce": {"n_negatives": 4},
    "bce_plus": {"n_negatives": 8},
    "gbce": {"n_negatives": 8, "gbce_t": 0.75},
    "ce_minus": {"n_negatives": 8},
    "cce_minus": {"n_negatives": 8},
    "sce": {"n_buckets": 6, "bucket_size_x": 12, "bucket_size_y": 12, "mix_x": True},
    "rece": {"n_buckets": 4, "rounds": 2},
}
assert LOSSES.keys() == KINDS.keys()


@pytest.fixture(scope="module")
def split() -> Split:
    """Every user walks through the catalog in steps of one: neighbours on either side tell an item."""
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
        "model": {
            "name": "bert4rec", "max_length": 6, "hidden_size": 16, "n_blocks": 1, "mask_probability": 0.3,
        },
        "loss": {"name": loss, **LOSSES[loss]},
        "train": {"seed": 1, "batch_size": 16, "epochs": 2, "learning_rate": 0.01, "patience": None},
        "evaluation": {"exclude_seen": False},
    }  # fmt: skip
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return parse(tree)


@pytest.mark.parametrize(
    ("loss", "head"), [*((loss, "untied") for loss in LOSSES), ("ce", "tied"), ("bce_plus", "tied"), ("sce", "tied")]
)
def test_every_loss_trains_it(split: Split, loss: str, head: str) -> None:
    """The published runs of CE- and BCE+ with untied heads collapse to nothing; a constant ranking's NDCG is 0.19."""
    run = make(loss, model__head=head, train__epochs=40, train__valid_every=10)
    report = train.train(run, split=split, device="cpu")
    assert report.history[-1].metrics["train/loss"] < 0.7 * report.history[0].metrics["train/loss"]
    assert report.metrics["test/ndcg_at_10"] > 0.4


class KilledError(Exception):
    pass


def numbers(report: RunReport) -> dict[str, float]:
    """What a run computed, without what the clock said."""
    rows = {f"{past.epoch} {k}": v for past in report.history for k, v in past.metrics.items()}
    return {k: v for k, v in (report.metrics | rows).items() if "time/" not in k and not k.endswith("elapsed_s")}


@pytest.mark.parametrize("loss", ["ce", "ce_minus"])
def test_a_resumed_run_is_bit_equal_to_one_without_interruption(split: Split, loss: str, tmp_path: Path) -> None:
    """An epoch's masks follow from the seed and the epoch's number too."""
    run = make(loss, train__epochs=4)
    straight = train.train(run, split=split, workdir=tmp_path / "straight", device="cpu")

    def die_after_2(report: EpochReport) -> None:
        if report.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train.train(run, split=split, workdir=tmp_path / "killed", device="cpu", on_epoch=die_after_2)
    resumed = train.train(run, split=split, workdir=tmp_path / "killed", device="cpu")
    assert numbers(resumed) == numbers(straight)
    other = train.train(make(loss, train__epochs=4, train__seed=2), split=split, device="cpu")
    assert numbers(other) != numbers(resumed)


def test_an_epoch_is_plain_adam_on_the_masked_items(split: Split) -> None:
    """The slow twin of an epoch, with torch's own cross-entropy at the masked positions, and a bias of its own."""
    run = make(model__dropout=0.0)
    torch.manual_seed(0)
    model, twin = (models.build(run.model, split.n_items).double() for _ in range(2))
    twin.load_state_dict(model.state_dict())
    mean = train.build_engine(run, split, model, torch.device("cpu")).run_epoch(1)
    adam = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.9, 0.98))
    batches = ClozeBatches(
        split.train, max_length=6, batch_size=16, drop_last=False, seed=1, device="cpu", mask_probability=0.3
    )
    total, count = 0.0, 0
    for batch in batches.epoch(1):
        adam.zero_grad()
        masked = batch.windows.masked
        assert masked is not None
        hidden, table = twin.states(batch.windows)[masked], twin.item_embeddings()
        logits = torch.nn.functional.linear(hidden[:, :-1], table[:, :-1], table[:, -1])
        loss = torch.nn.functional.cross_entropy(logits, batch.windows.items[masked])
        loss.backward()
        adam.step()
        total, count = total + loss.item() * int(masked.sum()), count + int(masked.sum())
    assert mean == pytest.approx(total / count, rel=1e-9)
    for (name, weight), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("head", ["untied", "tied"])
def test_a_batch_in_a_larger_shape_has_the_same_loss_and_gradients(split: Split, head: str) -> None:
    """What a captured step computes: spare histories and spare targets are there, and count for nothing."""
    run = make(model__dropout=0.0, model__head=head)
    torch.manual_seed(0)
    model = models.build(run.model, split.n_items).double()
    engine = train.build_engine(run, split, model, torch.device("cpu"))
    batches = engine.batches
    plan = batches.plan(1)
    size = plan.sizes[0]
    larger = type(size)(size.positions + 11, size.targets + 9, size.rows + 3, 6)
    ends = []
    for shape in (size, larger):
        batch = batches.gather(plan.users[: size.rows], shape)
        assert batch.predicted is not None
        hidden = model.states(batch.windows).index_select(0, batch.predicted)
        weights = None if batch.weights is None else batch.weights.double()
        loss = engine.loss(hidden, model.item_embeddings(), batch.targets, weights_N=weights)
        ends.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
