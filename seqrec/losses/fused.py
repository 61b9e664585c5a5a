"""The losses by fused kernels: the values of the eager ones, without what those hold and wait for.

Operands are 16 bits (float16 unless told otherwise), products and sums float32; gradients come with the value. Every
one is `capturable`: rece and sce take the number of real positions from the weights, on the device. cce is ce: both are
one kernel. cce_minus asks for no negatives: the kernel draws them.

`why_not` says where they cannot run; the eager losses are the reference everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec import config, kernels
from seqrec.data.negatives import Negatives
from seqrec.data.tables import IntArray
from seqrec.kernels.cross_entropy import cross_entropy
from seqrec.kernels.draws import alias_table
from seqrec.kernels.rece import rece
from seqrec.kernels.rece_tables import MOST_BUCKETS
from seqrec.kernels.sampled import sampled_binary, sampled_softmax
from seqrec.kernels.sce import LARGEST_BUCKET, MOST_CENTRES, mixed_centres, sce
from seqrec.kernels.shared import shared_softmax
from seqrec.losses import build as build_eager
from seqrec.losses.base import Loss, Pass
from seqrec.losses.bce import BcePlus, Gbce
from seqrec.losses.ce import Cce, Ce
from seqrec.losses.ce_minus import CceMinus, CeMinus
from seqrec.losses.rece import Rece
from seqrec.losses.sce import Sce


def why_not(device: torch.device, width: int, low: torch.dtype, loss: config.Loss) -> str | None:
    """Why the kernels cannot take a loss's place, as a law that is broken; None: they can. width: of the states that
    the loss is given, which may have more numbers than the model's `hidden_size`."""
    if device.type != "cuda":
        return "a CUDA device"
    if low == torch.float32:
        return "train.precision bf16: their operands have 16 bits"
    most = {}
    if isinstance(loss, config.Rece):
        most = {"n_buckets": MOST_BUCKETS}
    elif isinstance(loss, config.Sce):
        most = {"n_buckets": MOST_CENTRES, "bucket_size_x": LARGEST_BUCKET, "bucket_size_y": LARGEST_BUCKET}
    for key, bound in most.items():
        if getattr(loss, key) > bound:
            return f"loss.{key} <= {bound}"
    return kernels.why_not(device, width, 1)


def build(
    loss: config.Loss, n_items: int, dtype: torch.dtype = torch.float16, item_counts: IntArray | None = None
) -> Loss:
    """`seqrec.losses.build`, by kernels whose operands are `dtype`.

    item_counts: (n_items,) occurrences in training, by which cce_minus draws popular negatives; without them it has to
    be given those.
    """
    eager = build_eager(loss, n_items)
    match eager:
        case Ce() | Cce():
            return FusedCe(dtype)
        case Gbce():
            return _FusedBinary(eager, dtype, beta=eager.beta, mean=True)
        case BcePlus():
            return _FusedBinary(eager, dtype, mean=False, plus=True, eps=eager.EPSILON)
        case CeMinus():
            return FusedCeMinus(eager, dtype, item_counts)
        case Rece():
            return FusedRece(eager, dtype)
        case Sce():
            return FusedSce(eager, dtype)
    raise AssertionError(f"no kernel for {loss.name}")


class FusedCe(Loss):
    """Exact cross-entropy over the catalog."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
    ) -> Pass:
        return _by(cross_entropy, targets_N, weights_N, dtype=self.dtype)


class _FusedBinary(Loss):
    """bce, gbce and bce_plus: what `sampled_binary` calls them is in `options`."""

    def __init__(self, eager: Gbce | BcePlus, dtype: torch.dtype, **options: Any) -> None:
        super().__init__()
        self.request = eager.request
        self.dtype, self.options = dtype, options

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
    ) -> Pass:
        assert negatives is not None
        return _by(sampled_binary, targets_N, weights_N, ids=negatives.ids, dtype=self.dtype, **self.options)


class FusedCeMinus(Loss):
    """ce_minus and cce_minus, whoever shares a draw."""

    popularity: Tensor | None
    """(V, 2) alias table; None: uniform draws."""
    log_q: Tensor | None

    def __init__(self, eager: CeMinus, dtype: torch.dtype, item_counts: IntArray | None = None) -> None:
        super().__init__()
        self.dtype, self.correction = dtype, eager.correction
        self.request = eager.request
        self.n_negatives = 0
        popularity = log_q = None
        if isinstance(eager, CceMinus) and eager.request is not None:
            popular = eager.request.sampling == "popularity"
            if popular and item_counts is not None:
                counts = torch.from_numpy(np.asarray(item_counts, dtype=np.int64))
                popularity = alias_table(counts)
                if self.correction == "log_q":
                    log_q = (counts.double() / counts.sum()).log().float()
            if not popular or popularity is not None:
                self.n_negatives = eager.request.n
                self.request = None
        self.register_buffer("popularity", popularity, persistent=False)
        self.register_buffer("log_q", log_q, persistent=False)

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
    ) -> Pass:
        if negatives is None:
            # Negatives that the kernel draws are a function of this number, the position and their place.
            seed = torch.randint(2**62, (1,), generator=generator, device=hidden_ND.device)
            compute = partial(
                sampled_softmax,
                seed=seed,
                n_negatives=self.n_negatives,
                popularity=self.popularity,
                correction=self.correction,
                log_q=self.log_q,
            )
        else:
            # Of uniform draws log_q is log_count.
            correction = "log_count" if self.correction == "log_q" and negatives.log_q is None else self.correction
            log_q = negatives.log_q if correction == "log_q" else None
            if negatives.group is None:
                compute = partial(sampled_softmax, ids=negatives.ids, correction=correction, log_q=log_q)
            else:
                compute = partial(
                    shared_softmax,
                    ids=negatives.ids,
                    offsets=self._offsets(negatives, weights_N),
                    correction=correction,
                    log_q=log_q,
                )
        return _by(compute, targets_N, weights_N, dtype=self.dtype)

    def _offsets(self, negatives: Negatives, weights_N: Tensor | None) -> Tensor | None:
        """(G + 1,) where each user's positions, which lie end to end, begin; None: positions were dealt in turn."""
        assert self.request is not None
        group = negatives.group
        assert group is not None
        if self.request.scope != "user":
            return None
        G = len(negatives.ids)
        if weights_N is not None:
            # Spare targets of masked batches are of any history, and would break the order: they are nobody's.
            group = group.masked_fill(weights_N == 0, G)
        return torch.searchsorted(group, torch.arange(G + 1, device=group.device))


class FusedRece(Loss):
    """rece; projections of all rounds are drawn at once."""

    def __init__(self, eager: Rece, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.n_buckets, self.rounds = eager.n_buckets, eager.rounds
        self.n_chunks, self.n_extra_chunks = eager.n_chunks, eager.n_extra_chunks

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
        *,
        projections: Tensor | None = None,
    ) -> Pass:
        """projections: (rounds, n_buckets, D) fixed ones, instead of those drawn from `generator`."""
        if projections is None:
            shape = (self.rounds, self.n_buckets, hidden_ND.shape[1])
            projections = torch.empty(shape, device=hidden_ND.device).normal_(generator=generator)
        return _by(
            rece,
            targets_N,
            weights_N,
            projections=projections,
            n_chunks=self.n_chunks,
            reach=self.n_extra_chunks,
            count=_real_positions(weights_N),
            dtype=self.dtype,
        )


class FusedSce(Loss):
    """sce; weights say which positions are real, and nothing else: it is a mean over those that are in some bucket."""

    covered_share: Tensor | None = None
    """As of the eager one. Made by the first call, which is not captured, and written to by all others: steps captured
    in several shapes share it."""

    def __init__(self, eager: Sce, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.mix_x, self.n_buckets = dtype, eager.mix_x, eager.n_buckets
        self.bucket_size_x, self.bucket_size_y = eager.bucket_size_x, eager.bucket_size_y

    def prepare(
        self,
        hidden_ND: Tensor,
        item_embeddings_VD: Tensor,
        targets_N: Tensor,
        negatives: Negatives | None,
        generator: torch.Generator | None,
        weights_N: Tensor | None,
        *,
        centres: Tensor | None = None,
    ) -> Pass:
        """centres: (n_buckets, D) fixed ones, instead of those drawn from `generator`."""
        count = _real_positions(weights_N)
        if centres is None and self.mix_x:
            centres = mixed_centres(hidden_ND, self.n_buckets, count=count, generator=generator)
        elif centres is None:
            centres = torch.empty(self.n_buckets, hidden_ND.shape[1], device=hidden_ND.device)
            centres.normal_(generator=generator)

        def work(hidden: Tensor, items: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
            value, to_hidden, to_items, share = sce(
                hidden,
                items,
                targets_N,
                centres=centres,
                bucket_size_x=self.bucket_size_x,
                bucket_size_y=self.bucket_size_y,
                count=count,
                dtype=self.dtype,
                gradients=needs_gradient,
            )
            if self.covered_share is None or self.covered_share.device != share.device:
                self.covered_share = share
            else:
                self.covered_share.copy_(share)
            return value, to_hidden, to_items

        return work


def _by(
    kernel: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]],
    targets_N: Tensor,
    weights_N: Tensor | None,
    **options: Any,
) -> Pass:
    def work(hidden: Tensor, items: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return kernel(hidden, items, targets_N, weights_N, gradients=needs_gradient, **options)

    return work


def _real_positions(weights_N: Tensor | None) -> Tensor | None:
    """() int64 positions that are not spare, which are the first ones; None: all."""
    return None if weights_N is None else (weights_N > 0).sum()
