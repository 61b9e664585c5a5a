"""The generator: the same numbers whatever the block, a tail of the right slope, an order that can be learnt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqrec.data import interactions, splits, synthetic
from seqrec.data.__main__ import main
from seqrec.data.synthetic import Recipe
from seqrec.data.tables import Interactions
from seqrec.errors import ConfigError, DataError

SMALL = Recipe(n_users=300, n_items=500, seed=7, length_mu=3.0, min_length=5, max_length=90)


def made(recipe: Recipe, tmp_path: Path, block_users: int = 4096) -> Interactions:
    file = tmp_path / "made.parquet"
    synthetic.write(recipe, file, block_users=block_users)
    return interactions.read(str(file))


def test_the_file_is_the_same_whatever_the_block(tmp_path: Path) -> None:
    digests = {made(SMALL, tmp_path, block_users).digest for block_users in (1, 7, 299, 300, 4096)}
    assert len(digests) == 1
    # The generator is a promise too: a change of it is another data set under the same command.
    assert digests == {"e97923059a219537c8941d19fc6e2f82352b75c1eed50295ef6cc10822a73cfd"}


@pytest.mark.parametrize("change", [{"seed": 8}, {"n_items": 501}, {"follow": 0.6}, {"taste": 0.4}, {"length_mu": 3.1}])
def test_every_number_of_the_recipe_matters(change: dict[str, Any], tmp_path: Path) -> None:
    other = replace(SMALL, **change)
    assert made(other, tmp_path).digest != made(SMALL, tmp_path).digest


def test_a_user_depends_on_no_other(tmp_path: Path) -> None:
    """More users leave those that were there as they were."""
    few, many = made(SMALL, tmp_path), made(replace(SMALL, n_users=900), tmp_path)
    rows = many.user_id < 300
    for mine, theirs in ((few.item_id, many.item_id), (few.time, many.time), (few.user_id, many.user_id)):
        assert np.array_equal(mine, theirs[rows])


def test_the_file_is_canonical_and_in_range(tmp_path: Path) -> None:
    table = made(SMALL, tmp_path)
    assert table.has_timestamps
    assert np.array_equal(np.unique(table.user_id), np.arange(300))
    assert table.item_id.min() >= 0
    assert table.item_id.max() < 500
    lengths = np.bincount(table.user_id)
    assert (lengths.min(), lengths.max() <= 90) == (5, True)
    same_user = np.diff(table.user_id) == 0
    assert (np.diff(table.time)[same_user] > 0).all(), "no two events of a user at one moment"
    written = pq.read_table(tmp_path / "made.parquet")
    assert np.array_equal(written["item_id"].to_numpy(), table.item_id), "written in the order of reading"


def test_lengths_are_lognormal() -> None:
    recipe = Recipe(n_users=20_000, n_items=10, min_length=1, max_length=2**20, n_tastes=1)
    lengths = np.log(synthetic._lengths(recipe, np.arange(20_000)) + 0.5)
    assert lengths.mean() == pytest.approx(4.1, abs=0.02)
    assert lengths.std() == pytest.approx(0.8, abs=0.02)
    skewness = ((lengths - lengths.mean()) ** 3).mean() / lengths.std() ** 3
    assert abs(skewness) < 0.08
    mu = synthetic.length_mu(83.1, 0.8)
    assert mu == pytest.approx(4.1, abs=1e-3)


@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.1])
def test_the_tail_has_its_slope(exponent: float) -> None:
    recipe = Recipe(n_users=6_000, n_items=3_000, popularity=exponent)
    counts = np.sort(sum(np.bincount(block.item_id, minlength=3_000) for block in synthetic.blocks(recipe)))[::-1]
    ranks = np.arange(16, 2_000)
    slope, _ = np.polyfit(np.log(ranks), np.log(counts[ranks - 1]), 1)
    assert slope == pytest.approx(-exponent, abs=0.05)


def hit_rates(table: Interactions) -> tuple[float, float]:
    """HR@10 of the last item, by counts of what followed the item before it, and by popularity; slow and obvious."""
    histories: dict[int, list[int]] = defaultdict(list)
    for user, item in zip(table.user_id.tolist(), table.item_id.tolist(), strict=True):
        histories[user].append(item)
    popularity: Counter[int] = Counter()
    followers: dict[int, Counter[int]] = defaultdict(Counter)
    for items in histories.values():
        popularity.update(items[:-1])
        for one, other in pairwise(items[:-1]):
            followers[one][other] += 1
    popular = {item for item, _ in popularity.most_common(10)}
    markov = [items[-1] in {item for item, _ in followers[items[-2]].most_common(10)} for items in histories.values()]
    return float(np.mean(markov)), float(np.mean([items[-1] in popular for items in histories.values()]))


def shuffled(table: Interactions) -> Interactions:
    """The rows of each user in another order."""
    order = np.lexsort((np.random.default_rng(0).random(len(table.user_id)), table.user_id))
    return Interactions(table.user_id, table.item_id[order], table.time, True, "shuffled", "0" * 64)


def test_the_order_can_be_learnt_and_is_gone_when_shuffled(tmp_path: Path) -> None:
    recipe = Recipe(n_users=2_000, n_items=2_000, popularity=0.5)
    table = made(recipe, tmp_path)
    markov, popular = hit_rates(table)
    without_order, _ = hit_rates(shuffled(table))
    without_following, _ = hit_rates(made(replace(recipe, follow=0.0), tmp_path))
    assert markov > 0.4
    assert markov > 5 * popular
    assert without_order < markov / 5
    assert without_following < markov / 5


def test_users_have_tastes() -> None:
    """The draws of a user, and not its successors, gather in one class of ranks."""
    recipe = Recipe(n_users=200, n_items=4_000, follow=0.0, taste=0.6, n_tastes=8)
    (block,) = synthetic.blocks(recipe)
    rank_of_item = np.argsort(np.argsort(synthetic._words(0, "ids", np.arange(4_000)), kind="stable"))
    tastes = rank_of_item[block.item_id] % 8
    table = np.zeros((200, 8))
    np.add.at(table, (block.user_id, tastes), 1)
    share = (table.max(1) / table.sum(1)).mean()
    assert share == pytest.approx(0.6 + 0.4 / 8, abs=0.05)
    assert len(set(table.argmax(1).tolist())) == 8


@pytest.mark.parametrize(("n_users", "n_items"), [(300, 1_400), (300, 1_500), (300, 40), (7, 35)])
def test_every_item_is_there_if_asked_for(n_users: int, n_items: int, tmp_path: Path) -> None:
    recipe = replace(SMALL, n_users=n_users, n_items=n_items, n_tastes=4, popularity=3.0)
    table = made(replace(recipe, every_item=True), tmp_path, block_users=64)
    assert np.array_equal(np.unique(table.item_id), np.arange(n_items))
    assert splits.leave_one_out(table).n_items == n_items
    assert len(np.unique(made(recipe, tmp_path).item_id)) < n_items


PEAKS = """
import sys, tracemalloc
from pathlib import Path
from seqrec.data import synthetic

for n_users, block_users in ((2_000, 250), (2_000, 250), (8_000, 250), (8_000, 8_000)):
    recipe = synthetic.Recipe(n_users=n_users, n_items=1_000)
    tracemalloc.start()
    synthetic.write(recipe, Path(sys.argv[1]) / "made.parquet", block_users=block_users)
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def test_memory_is_bounded_by_a_block(tmp_path: Path) -> None:
    """Peak of what NumPy allocates: four times the users in blocks of one size take no more, one block takes more. In a
    process of its own, without the threads of other tests, and after a first time, which imports."""
    said = subprocess.run([sys.executable, "-c", PEAKS, str(tmp_path)], capture_output=True, text=True, check=True)
    _, few, many, whole = map(int, said.stdout.split())
    assert many < 1.5 * few
    assert whole > 10 * many


def test_split_every_way(tmp_path: Path) -> None:
    table = made(SMALL, tmp_path)
    for split in (
        splits.leave_one_out(table),
        splits.temporal(table, 0.95),
        splits.replay(table, 0.9, 0.05, 42, "trained"),
    ):
        assert split.statistics.n_train_users > 200


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_users": 0}, "n_users: got 0; expected a number from 1 to 2147483647."),
        ({"n_items": 1}, "n_items: got 1; expected a number from 2 to 2147483646."),
        ({"follow": 1.5}, "follow: got 1.5; expected a number from 0.0 to 1.0."),
        ({"popularity": float("nan")}, "popularity: got nan; expected a number from 0.0 to 4.0."),
        ({"min_length": 91}, "max_length: got 90; expected a number from 91 to 1048576."),
        ({"n_items": 1_501, "every_item": True}, "n_items: got 1501; expected <= 1500 (n_users * min_length)"),
    ],
)
def test_a_recipe_that_cannot_be_made_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        replace(SMALL, **change)
    assert str(refusal.value).startswith(told)


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        synthetic.write(SMALL, tmp_path / "file" / "x.parquet")
    with pytest.raises(DataError, match=r"expected a file that ends in \.parquet"):
        synthetic.write(SMALL, tmp_path / "x.csv")

    def interrupt(users: int, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write(SMALL, tmp_path / "x.parquet", block_users=10, on_block=interrupt)
    assert os.listdir(tmp_path) == ["file"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.parquet"
    command = ["synthesize", "--users", "300", "--items", "500", "--seed", "7", "--out", str(file)]
    assert main([*command, "--mean-length", "20", "--min-length", "5", "--max-length", "90", "--every-item"]) == 0
    said = capsys.readouterr()
    shown = {key: value.strip() for key, value in (line.split("  ", 1) for line in said.out.splitlines())}
    table = interactions.read(str(file))
    assert shown == {
        "file": str(file),
        "users": "300",
        "items": "500",
        "interactions": str(len(table.user_id)),
        "longest history": str(np.bincount(table.user_id).max()),
    }
    assert "300 of 300 users" in said.err
    assert len(np.unique(table.item_id)) == 500
    assert main([*command, "--mean-length", "0"]) == 2
    assert capsys.readouterr().err == "--mean-length: got 0.0; expected a number >= 1.\n"
    assert main([*command, "--popularity", "9"]) == 2
    assert capsys.readouterr().err.startswith("--popularity: got 9.0; expected a number from ")
    assert main([*command, "--tastes", "501"]) == 2
    assert capsys.readouterr().err.startswith("--tastes: got 501; expected a number from 1 to 500.")
    assert main(["synthesize", "--users", "0", "--items", "500", "--out", str(file)]) == 2
    assert capsys.readouterr().err.startswith("--users: got 0; ")
