"""CE-: softmax cross-entropy over the target and sampled negatives ("Turning Dross Into Gold Loss", arXiv 2309.07602).

    loss_i = -s_iy + log( exp(s_iy) + sum_{k: item_k != y_i} exp(s_ik + c_ik) )

r_i of position i's n negatives equal its target. They are rejected, that is absent from the sum, and the corrections
count what is left, n - r_i, so that the sum estimates sum_{j != y} exp(s_ij) without bias. A position whose negatives
are all rejected has loss 0.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.losses.base import Loss, Pass
from seqrec.losses.candidates import by_tiles, hits, softmax_loss

Correction = Literal["none", "log_count", "log_q"]


class CeMinus(Loss):
    """CE- under any scope and sampling of negatives.

    c_ik by correction:
    none       0, as the RECE and SCE papers
    log_count  log(V - 1) - log(n - r_i): unbiased for uniform negatives; under popularity, as published, it is not
    log_q      log(1 - q_y) - log(n - r_i) - log q_k: unbiased for any q > 0; log_count when q is uniform

    The published code forms x * w over (N, n, D) and sums, D times the scores' memory; here scores are matrix products,
    a tile at a time.
    """

    def __init__(self, request: NegativesRequest, n_items: int, correction: Correction = "none") -> None:
        super().__init__()
        self.request = request
        self.n_items = n_items
        self.correction = correction

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
        log_q = negatives.log_q

        def row_loss(positive_GP: Tensor, scores_GPK: Tensor, targets_GP: Tensor, ids_GK: Tensor) -> Tensor:
            rejected = hits(targets_GP, ids_GK)
            logits = scores_GPK
            if self.correction != "none":
                # log 0 where none is kept: all of the row's logits are masked then.
                kept = (~rejected).sum(-1, keepdim=True)
                logits = logits - kept.to(logits.dtype).log() + self._log_weight(targets_GP, ids_GK, log_q, logits)
            return softmax_loss(positive_GP, logits, rejected)

        return by_tiles(row_loss, targets_N, negatives, weights_N)

    def _log_weight(self, targets_GP: Tensor, ids_GK: Tensor, log_q: Tensor | None, like: Tensor) -> Tensor | float:
        """log of (1 - q_y) / q_k, broadcast over (G, P, K)."""
        if self.correction == "log_count" or log_q is None:
            return math.log(max(1, self.n_items - 1))
        log_q = log_q.to(like.dtype)
        return torch.log1p(-log_q.exp())[targets_GP][:, :, None] - log_q[ids_GK][:, None, :]


class CceMinus(CeMinus):
    """CCE- (arXiv 2509.09682): CE- with negatives per position, with replacement; by default with log_count.

    The published kernels replace a rejected negative by a zero vector that still counts exp(log((V - 1)/(n + 1))) in
    the partition, correct by n + 1 instead of n - r_i, and apply the uniform correction to popularity too. Here: the
    paper's intent, as in CE-.
    """

    def __init__(
        self,
        n_negatives: int,
        n_items: int,
        sampling: Literal["uniform", "popularity"] = "uniform",
        correction: Correction = "log_count",
    ) -> None:
        super().__init__(NegativesRequest(n_negatives, "position", sampling), n_items, correction)
