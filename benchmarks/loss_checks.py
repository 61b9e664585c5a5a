"""The checks behind `loss_gate`: a fused loss and the eager float64 one on the same inputs and the same draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.loss_cases import beta_of, kernel, user_of_position
from benchmarks.loss_clock import Result
from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.losses.base import Loss
from seqrec.losses.bce import BcePlus, Gbce
from seqrec.losses.ce import Ce
from seqrec.losses.ce_minus import CeMinus, Correction
from seqrec.losses.rece import Rece
from seqrec.losses.sce import Sce

Pair = tuple[Result, tuple[Tensor, Tensor | None, Tensor | None]]
"""(what the kernel gives, what it should)."""


@dataclass(frozen=True, eq=False)
class Check:
    loss: str
    name: str
    rows: int
    run: Callable[[torch.device, torch.dtype], Pair]
    sd: float = 0.4
    """Class of the logits' spread, which decides what is allowed."""
    value_bound: float = 0.0
    """Allowed for the value, where it is more than rounding explains."""


@dataclass(frozen=True)
class Size:
    N: int
    V: int
    D: int


def checks(width: int, quick: bool) -> list[Check]:
    """Of one width; the narrow ones hold a width that is no power of two too."""
    main = Size(24, 90, width) if quick else Size(2048, 20_001, width) if width <= 64 else Size(1024, 5003, width)
    sizes = [main] + ([Size(19, 77, 24) if quick else Size(300, 2003, 24)] if width <= 64 else [])
    found: list[Check] = []
    for size in sizes:
        tag = f"D={size.D}"
        K = 9 if quick else 64
        found += [
            Check("ce", f"{tag}", size.N, partial(_ce, size, 0.4, False)),
            Check("ce", f"{tag} peaked", size.N, partial(_ce, size, 12.0, False), 12.0),
            Check("ce", f"{tag} weights", size.N, partial(_ce, size, 0.4, True)),
            Check("rece", f"{tag} rounds=1", size.N, partial(_rece, size, 1, 1)),
            Check("rece", f"{tag} rounds=3", size.N, partial(_rece, size, 3, 1)),
            Check("sce", tag, size.N, partial(_sce, size), value_bound=1e-4),
        ]
        for correction in ("none", "log_count", "log_q"):
            found += [
                Check("cce_minus", f"{tag} {correction}", size.N, partial(_position, size, K, correction, 0.4)),
                Check("ce_minus_group", f"{tag} {correction}", size.N, partial(_group, size, K, correction, 0.4)),
            ]
        found += [
            Check("cce_minus", f"{tag} K=1", size.N, partial(_position, size, 1, "log_count", 0.4)),
            Check("cce_minus", f"{tag} peaked", size.N, partial(_position, size, K, "log_count", 12.0), 12.0),
            Check("ce_minus_group", f"{tag} peaked", size.N, partial(_group, size, K, "log_count", 12.0), 12.0),
            Check("ce_minus_user", f"{tag}", size.N, partial(_user, size, K)),
            Check("bce", f"{tag}", size.N, partial(_binary, size, K, "bce")),
            Check("gbce", f"{tag}", size.N, partial(_binary, size, K, "gbce")),
            Check("bce", f"{tag} bce_plus", size.N, partial(_binary, size, K, "bce_plus")),
        ]
    if not quick:
        found.append(Check("rece", f"D={width} rounds=8", main.N, partial(_rece, main, 8, 3)))
        # The mean over all positions of CE- with the count's correction is the whole cross-entropy, but for a bias of
        # 2e-4 nats and a noise of 4e-4: 3e-4 of the value is some five deviations.
        found.append(Check("cce_minus", "drawn in the kernel", main.N, partial(_drawn, main), value_bound=3e-4))
    return found


# ------------------------------------------------------------------------------------------------------------- inputs


def _normal(size: Size, sd: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """float32 states and items whose logits have this standard deviation, and targets."""
    generator = torch.Generator().manual_seed(size.N + size.D)
    scale = (sd / size.D**0.5) ** 0.5
    hidden = torch.randn(size.N, size.D, generator=generator) * scale
    items = torch.randn(size.V, size.D, generator=generator) * scale
    targets = torch.randint(size.V, (size.N,), generator=generator)
    return hidden.to(device), items.to(device), targets.to(device)


def _weights(n: int, device: torch.device) -> Tensor:
    """Of sum 1, every fifth 0."""
    weights = torch.rand(n, generator=torch.Generator().manual_seed(3)) + 0.1
    weights[::5] = 0
    return (weights / weights.sum()).to(device)


def _ids(size: Size, n_rows: int, K: int, targets: Tensor) -> Tensor:
    """Some of them targets, so that something is rejected."""
    ids = torch.randint(size.V, (n_rows, K), generator=torch.Generator().manual_seed(4)).to(targets.device)
    ids[::3, 0] = targets[: len(ids[::3])]
    return ids


def _double(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor], *rest: Any, **fixed: Any) -> Result:
    hidden, items, targets = inputs
    return loss.value_and_gradients(hidden.double(), items.double(), targets, *rest, **fixed)


def _first_three(result: tuple[Any, ...]) -> Result:
    value, to_hidden, to_items, *_ = result
    return value, to_hidden, to_items


# ------------------------------------------------------------------------------------------------------------- losses


def _ce(size: Size, sd: float, weighted: bool, device: torch.device, dtype: torch.dtype) -> Pair:
    inputs = _normal(size, sd, device)
    weights = _weights(size.N, device) if weighted else None
    found = kernel("cross_entropy", "cross_entropy")(*inputs, weights, dtype=dtype)
    return _first_three(found), _double(Ce(), inputs, weights_N=None if weights is None else weights.double())


def _softmax(size: Size, K: int, correction: Correction, log_q: Tensor | None) -> CeMinus:
    return CeMinus(NegativesRequest(K, "position"), size.V, correction)


def _log_q(size: Size, correction: str, device: torch.device) -> Tensor | None:
    if correction != "log_q":
        return None
    return torch.randn(size.V, generator=torch.Generator().manual_seed(5)).log_softmax(0).to(device)


def _position(size: Size, K: int, correction: Correction, sd: float, device: torch.device, dtype: torch.dtype) -> Pair:
    inputs = _normal(size, sd, device)
    ids, log_q, weights = _ids(size, size.N, K, inputs[2]), _log_q(size, correction, device), _weights(size.N, device)
    found = kernel("sampled", "sampled_softmax")(
        *inputs, weights, ids=ids, correction=correction, log_q=log_q, dtype=dtype
    )
    negatives = Negatives(ids, None, None if log_q is None else log_q.double())
    loss = _softmax(size, K, correction, log_q)
    return _first_three(found), _double(loss, inputs, negatives, weights_N=weights.double())


def _group(size: Size, K: int, correction: Correction, sd: float, device: torch.device, dtype: torch.dtype) -> Pair:
    inputs = _normal(size, sd, device)
    n_groups = -(-size.N // 128) + 1
    group = torch.arange(size.N, device=device) % n_groups
    ids, log_q, weights = _ids(size, n_groups, K, inputs[2]), _log_q(size, correction, device), _weights(size.N, device)
    found = kernel("shared", "shared_softmax")(
        *inputs, weights, ids=ids, correction=correction, log_q=log_q, dtype=dtype
    )
    negatives = Negatives(ids, group, None if log_q is None else log_q.double())
    loss = _softmax(size, K, correction, log_q)
    return _first_three(found), _double(loss, inputs, negatives, weights_N=weights.double())


def _user(size: Size, K: int, device: torch.device, dtype: torch.dtype) -> Pair:
    inputs = _normal(size, 0.4, device)
    lengths = torch.tensor([1, 7, size.N // 2, 3])
    lengths = torch.cat([lengths, size.N - lengths.sum()[None]])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device)
    ids = _ids(size, len(lengths), K, inputs[2])
    found = kernel("shared", "shared_softmax")(*inputs, ids=ids, offsets=offsets, correction="none", dtype=dtype)
    negatives = Negatives(ids, user_of_position(offsets, size.N))
    return _first_three(found), _double(_softmax(size, K, "none", None), inputs, negatives)


def _binary(size: Size, K: int, loss: str, device: torch.device, dtype: torch.dtype) -> Pair:
    inputs = _normal(size, 0.4, device)
    ids, weights = _ids(size, size.N, K, inputs[2]), _weights(size.N, device)
    function = kernel("sampled", "sampled_binary")
    twin: Loss
    if loss == "bce_plus":
        twin = BcePlus(NegativesRequest(K, "position"))
        found = function(*inputs, weights, ids=ids, plus=True, mean=False, dtype=dtype)
    else:
        twin = Gbce(size.V, K, 0.75 if loss == "gbce" else 0.0)
        found = function(*inputs, weights, ids=ids, beta=beta_of(loss, K, size.V), dtype=dtype)
    return _first_three(found), _double(twin, inputs, Negatives(ids), weights_N=weights.double())


def _drawn(size: Size, device: torch.device, dtype: torch.dtype) -> Pair:
    inputs = _normal(size, 0.4, device)
    function = kernel("sampled", "sampled_softmax")
    values = []
    for number in (1, 1, 2):
        seed = torch.full((1,), number, device=device)
        values.append(function(*inputs, seed=seed, n_negatives=511, correction="log_count", dtype=dtype)[0])
    # The order of a sum may differ, the draws may not.
    assert torch.isclose(values[0], values[1], rtol=2e-6, atol=0), "one seed, two values"
    assert not torch.isclose(values[0], values[2], rtol=2e-6, atol=0), "two seeds, one value"
    return (values[0], None, None), (_double(Ce(), inputs)[0], None, None)


def _rece(size: Size, rounds: int, reach: int, device: torch.device, dtype: torch.dtype) -> Pair:
    n_buckets = 8 if size.V < 1000 else 24
    generator = torch.Generator().manual_seed(6)
    projections = torch.randn(rounds, n_buckets, size.D, generator=generator)
    hidden, items = (_clearly_hashed(n, projections, generator) for n in (size.N, size.V))
    sd = float((hidden @ items.T).std())
    hidden, items = hidden * (0.4 / sd) ** 0.5, items * (0.4 / sd) ** 0.5
    targets = torch.randint(size.V, (size.N,), generator=generator)
    inputs = hidden.to(device), items.to(device), targets.to(device)
    projections = projections.to(device)
    found = kernel("rece", "rece")(*inputs, projections=projections, n_chunks=n_buckets, reach=reach, dtype=dtype)
    return _first_three(found), _double(Rece(n_buckets, reach, rounds), inputs, projections=projections.double())


def _clearly_hashed(n: int, projections: Tensor, generator: torch.Generator) -> Tensor:
    """(n, D) vectors whose largest projection leads the second by 5 % in every round; their buckets are uneven."""
    rounds, n_buckets, D = projections.shape
    found: list[Tensor] = []
    while sum(map(len, found)) < n:
        vectors = torch.randn(n, D, generator=generator) * 0.3
        for number in range(rounds):
            drawn = torch.rand(n, generator=generator).square().mul_(n_buckets).long()
            vectors += projections[number, drawn]
        largest = torch.einsum("nd,rbd->rnb", vectors, projections).topk(2).values
        found.append(vectors[(largest[..., 0] - largest[..., 1] > 0.05 * largest[..., 0].abs()).all(0)])
    return torch.cat(found)[:n]


def _sce(size: Size, device: torch.device, dtype: torch.dtype) -> Pair:
    n_buckets, size_x, size_y = (3, 10, 12) if size.V < 1000 else (8, 64, 96)
    small = Size(min(size.N, 512), size.V, size.D)
    for seed in range(60):
        hidden, items, centres, targets = _exact_scores(small, n_buckets, seed)
        if _clear_choices(hidden.double(), items.double(), centres.double(), targets, size_x, size_y):
            break
    else:
        raise AssertionError("no seed gives inputs without near ties")
    inputs = hidden.to(device), items.to(device), targets.to(device)
    centres = centres.to(device)
    found = kernel("sce", "sce")(*inputs, centres=centres, bucket_size_x=size_x, bucket_size_y=size_y, dtype=dtype)
    return _first_three(found), _double(Sce(size.V, n_buckets, size_x, size_y), inputs, centres=centres.double())


def _exact_scores(size: Size, n_buckets: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whole numbers below 128 over powers of two: exact in 16 bits of either kind, and so are their products' sums in
    float32."""
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(40).round_().clamp_(-127, 127)

    hidden, items, centres = whole(size.N, size.D) / 2**9, whole(size.V, size.D) / 2**6, whole(n_buckets, size.D) / 64
    return hidden, items, centres, torch.randint(size.V, (size.N,), generator=generator)


def _clear_choices(x: Tensor, w: Tensor, centres: Tensor, y: Tensor, size_x: int, size_y: int) -> bool:
    """No tie at the edge of a bucket, and no position whose two hardest buckets are within 1e-4."""
    inside = []
    for vectors, k in ((x, size_x), (w, size_y)):
        scores = centres @ vectors.T
        ranked = scores.sort(descending=True).values
        if bool((ranked[:, k - 1] == ranked[:, k]).any()):
            return False
        inside.append(scores >= ranked[:, k - 1 : k])
    own = (x * w[y]).sum(1)
    losses = torch.full((len(centres), len(x)), -torch.inf, dtype=x.dtype)
    for b, (rows, members) in enumerate(zip(*inside, strict=True)):
        others = members.nonzero().squeeze(1)
        logits = (x @ w[others].T).masked_fill_(others[None, :] == y[:, None], -torch.inf)
        losses[b] = torch.where(rows, torch.logaddexp(logits.logsumexp(1), own) - own, -torch.inf)
    hardest = losses.topk(2, dim=0).values
    contested = hardest[1] > -torch.inf
    return bool((hardest[0] - hardest[1])[contested].gt(1e-4).all())
