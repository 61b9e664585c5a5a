"""Full ranking against a dense twin that looks at one user and one item at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqrec import metrics, models
from seqrec.config import CUTOFFS, Sasrec
from seqrec.data.batches import Windows
from seqrec.data.tables import Holdout, Sequences
from seqrec.evaluate import batches, evaluate
from seqrec.memory.evaluation import encoding_bytes
from seqrec.models.sasrec import SasrecModel
from seqrec.ranking import Ranker

U, V, D, LONGEST = 23, 61, 5, 9


class Toy(nn.Module):
    """Scores are a function of the history's last items; `seen_training` records the mode during encoding."""

    def __init__(self, seed: int, *, coarse: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(V, D, generator=generator)
        # Small whole numbers: many equal scores, exact in any order of summation.
        self.table = nn.Parameter(table.round().clamp(-1, 1) if coarse else table)
        self.dropout = nn.Dropout(0.5)
        self.modes: list[bool] = []
        self.longest: list[int] = []

    def encode(self, windows: Windows) -> Tensor:
        self.modes.append(self.training)
        self.longest.append(windows.longest)
        states = torch.zeros(windows.n_rows, D, device=self.table.device)
        return self.dropout(states.index_add(0, windows.rows, self.table[windows.items]))

    def item_embeddings(self) -> Tensor:
        return self.table

    def row_cells(self, longest: int) -> int:
        return longest


def holdout(seed: int) -> Holdout:
    """Random histories, some of which hold their target already."""
    random = np.random.default_rng(seed)
    histories = [random.integers(0, V, random.integers(1, LONGEST + 1)) for _ in range(U)]
    targets = random.integers(0, V, U)
    targets[::7] = [history[0] for history in histories[::7]]
    flat = np.concatenate(histories).astype(np.int32)
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    return Holdout(Sequences(flat, offsets, np.arange(U)), targets.astype(np.int32))


def twin(model: Toy, held: Holdout, max_length: int, exclude_seen: bool) -> tuple[list[int], list[list[int]]]:
    """(rank of every target, items of every user best first), by sorting in Python."""
    ranks, lists = [], []
    table = model.table.detach()
    for user in range(U):
        history = held.history.items[held.history.offsets[user] : held.history.offsets[user + 1]].tolist()
        state = sum((table[item] for item in history[-max_length:]), torch.zeros(D))
        scores = {item: float(table[item] @ state) for item in range(V)}
        banned = set(history) if exclude_seen else set()
        order = sorted((item for item in range(V) if item not in banned), key=lambda item: (-scores[item], item))
        target = int(held.targets[user])
        ranks.append(order.index(target) + 1 if target in order else metrics.MISS)
        lists.append(order)
    return ranks, lists


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("coarse", [True, False], ids=["ties", "no ties"])
@pytest.mark.parametrize(
    ("batch_size", "memory_bytes", "max_length"),
    # All at once; a few users at a time; slabs of a batch; one user and half of the catalog.
    [(23, 2**20, 9), (4, 2**20, 3), (7, 2**14, 9), (5, 1, 2)],
)
def test_ranks_and_lists_are_the_twins(
    exclude_seen: bool, coarse: bool, batch_size: int, memory_bytes: int, max_length: int
) -> None:
    for seed in range(3):
        model, held = Toy(seed, coarse=coarse), holdout(seed)
        users_of_item = np.random.default_rng(seed).integers(0, 40, V)
        found = evaluate(
            model,
            held,
            n_items=V,
            max_length=max_length,
            exclude_seen=exclude_seen,
            batch_size=batch_size,
            device="cpu",
            lists=True,
            item_counts=users_of_item,
            n_train_users=40,
            memory_bytes=memory_bytes,
        )
        ranks, lists = twin(model, held, max_length, exclude_seen)
        expected = metrics.ranking_metrics(torch.tensor(ranks), CUTOFFS)
        repeats = [held.targets[u] in held.history.items[slice(*held.history.offsets[u : u + 2])] for u in range(U)]
        expected["repeat_targets"] = sum(repeats) / U
        padded = torch.tensor([(order + [-1] * 50)[:50] for order in lists])
        for k in CUTOFFS:
            expected[f"coverage_at_{k}"] = metrics.coverage(padded, k, V)
            expected[f"surprisal_at_{k}"] = metrics.surprisal(padded, k, torch.tensor(users_of_item), 40)
        assert found == pytest.approx(expected, abs=1e-12)


def ranked(model: object, held: Holdout, **options: object) -> dict[str, float]:
    defaults = {"n_items": V, "max_length": 5, "exclude_seen": True, "batch_size": 6, "device": "cpu"}
    return evaluate(model, held, **(defaults | options))


def test_a_constant_model_is_ranked_by_id_and_not_first() -> None:
    model, held = Toy(0), holdout(0)
    nn.init.zeros_(model.table)
    ranks, _ = twin(model, held, 5, True)
    assert ranked(model, held)["mrr_at_50"] == pytest.approx(metrics.mrr(torch.tensor(ranks), 50))
    assert ranked(model, held)["hit_rate_at_1"] < 0.2


def test_a_repeated_target_is_a_miss_even_where_everything_is_listed() -> None:
    small = Sequences(np.array([0, 1], np.int32), np.array([0, 2]), np.array([0]))
    model = Toy(0)
    model.table = nn.Parameter(model.table[:3].detach().clone())
    held = Holdout(small, np.array([0], np.int32))
    excluded = ranked(model, held, n_items=3)
    assert (excluded["hit_rate_at_50"], excluded["repeat_targets"]) == (0.0, 1.0)
    included = ranked(model, held, n_items=3, exclude_seen=False)
    assert (included["hit_rate_at_50"], included["repeat_targets"]) == (1.0, 1.0)


def spoil_one_item(model: Toy, value: float) -> None:
    model.table[37] = value


def spoil_everything(model: Toy, value: float) -> None:
    model.table.fill_(value)


@pytest.mark.parametrize("spoil", [spoil_one_item, spoil_everything])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_never_look_good(spoil: Callable[[Toy, float], None], value: float) -> None:
    model, held = Toy(0), holdout(0)
    good = ranked(model, held)
    with torch.no_grad():
        spoil(model, value)
    bad = ranked(model, held, lists=True, item_counts=np.ones(V, np.int64), n_train_users=4)
    assert all(np.isfinite(list(bad.values())))
    if math.isnan(value) or spoil is spoil_everything:
        assert bad["hit_rate_at_50"] == 0.0
    assert bad["ndcg_at_10"] <= good["ndcg_at_10"]


def test_the_models_mode_is_restored_and_gradients_are_off() -> None:
    model, held = Toy(0), holdout(0)
    model.train()
    ranked(model, held)
    assert model.training
    assert set(model.modes) == {False}
    model.eval()
    ranked(model, held)
    assert not model.training
    assert model.table.grad is None


def test_the_mode_is_restored_after_a_failure() -> None:
    model = Toy(0)
    with pytest.raises(ValueError, match=rf"item_embeddings: got {V} rows; expected n_items \({V - 1}\)"):
        ranked(model, holdout(0), n_items=V - 1)
    assert model.training


def test_histories_of_similar_length_are_encoded_together() -> None:
    model, held = Toy(1), holdout(1)
    ranked(model, held, max_length=50)
    lengths = np.sort(held.history.lengths)
    ends = [end for _, end in batches(lengths, 6, 50, model, D, 0)]
    assert model.longest == lengths[np.array(ends) - 1].tolist()


@pytest.mark.parametrize("constant", [0, 40])
def test_batches_fill_the_rectangle_of_the_longest_and_never_more(constant: int) -> None:
    class Shape(Toy):
        def row_cells(self, longest: int) -> int:
            return constant or longest

    random = np.random.default_rng(0)
    lengths = np.sort(np.minimum(random.geometric(0.15, 3000), 64))
    plan = list(batches(lengths, 16, 40, Shape(0), D, 0))
    assert [0, *(end for _, end in plan)] == [*(start for start, _ in plan), 3000]
    kept, longest = np.minimum(lengths, 40), 16 * 40
    for start, end in plan:
        users, width = end - start, constant or int(kept[end - 1])
        assert users * width <= longest
        assert kept[start:end].sum() <= longest
        # BERT4Rec's masked place behind each history that leaves it one.
        assert (kept[start:end] + 1).sum() <= 16 * 41
        assert users >= 16 or end == 3000
        more = constant or int(kept[min(end, 2999)])
        assert end == 3000 or (users + 1) * (more + 1) > 16 * ((constant or 40) + 1), "one more would have fitted"
    assert len(plan) == 188 if constant else len(plan) < 60


def test_a_batch_has_a_most_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqrec.evaluate.MOST_ENCODED", 5)
    assert list(batches(np.full(12, 3), 7, 9, Toy(0), D, 0)) == [(0, 5), (5, 10), (10, 12)]


def test_batches_grow_into_the_memory_that_ranking_takes() -> None:
    cell = encoding_bytes(Sasrec(name="sasrec", hidden_size=8, mask_padding=True), 1, 1)
    for users in (3, 9, 100):
        sizes = [end - start for start, end in batches(np.full(200, 4), 3, 9, Toy(0), 8, users * 5 * cell)]
        assert set(sizes[:-1]) == {users}


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_kernels_rank_as_the_reference_does(monkeypatch: pytest.MonkeyPatch, exclude_seen: bool) -> None:
    """Without a GPU in Triton's interpreter; whole numbers, so that equal scores are equal there too."""
    model, device = Toy(4, coarse=True), "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    expected = [
        ranked(model, holdout(seed), exclude_seen=exclude_seen, device=device, kernels=False) for seed in (4, 5)
    ]
    monkeypatch.setattr(Ranker, "rank", lambda *_: pytest.fail("not by the kernel"))
    for held, right in zip((holdout(4), holdout(5)), expected, strict=True):
        assert ranked(model, held, exclude_seen=exclude_seen, device=device, kernels=True) == right


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("changes", [{}, {"mask_padding": True, "n_heads": 2}])
def test_sasrec_is_encoded_alike_by_kernels(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    config = Sasrec(name="sasrec", max_length=6, hidden_size=8, dropout=0.5, **changes)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, held = models.build(config, V).to(device), holdout(6)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    expected = ranked(model, held, max_length=6, device=device, kernels=False)
    assert expected["hit_rate_at_20"] > 0
    monkeypatch.setattr(SasrecModel, "states", lambda *_: pytest.fail("not by kernels"))
    model.train()
    assert ranked(model, held, max_length=6, device=device, kernels=True) == pytest.approx(expected, abs=1e-12)
    assert model.training


def test_ranks_alone_are_counted_and_nothing_is_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, held = Toy(3), holdout(3)
    expected = ranked(model, held, lists=True, item_counts=np.ones(V, np.int64), n_train_users=4)
    for name in ("topk", "sort"):
        monkeypatch.setattr(Tensor, name, lambda *_, **__: pytest.fail("a list for a rank"))
    found = ranked(model, held)
    assert found == {name: expected[name] for name in found}


def test_the_model_may_compute_as_it_likes_but_scores_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    place = torch.backends.cuda.matmul
    seen: dict[str, list[str]] = {"encode": [], "rank": []}
    model, encode, rank, before = Toy(0), Toy.encode, Ranker.rank, place.fp32_precision

    def told(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen[name].append(place.fp32_precision)
            return function(*arguments)

        return call

    monkeypatch.setattr(Toy, "encode", told("encode", encode))
    monkeypatch.setattr(Ranker, "rank", told("rank", rank))
    try:
        place.fp32_precision = "tf32"
        ranked(model, holdout(0))
    finally:
        place.fp32_precision = before
    assert {name: set(values) for name, values in seen.items()} == {"encode": {"tf32"}, "rank": {"ieee"}}


def test_lists_need_popularity() -> None:
    with pytest.raises(ValueError, match="item_counts, n_train_users: got None; expected both with lists"):
        ranked(Toy(0), holdout(0), lists=True)


@pytest.mark.gpu
def test_a_device_ranks_as_the_cpu_does() -> None:
    # Whole numbers: equal scores are equal on both.
    held, model = holdout(2), Toy(2, coarse=True)
    popularity = {"lists": True, "item_counts": np.arange(V), "n_train_users": V}
    expected = ranked(model, held, **popularity)
    assert ranked(model.to("cuda"), held, device="cuda", **popularity) == pytest.approx(expected, abs=1e-12)
