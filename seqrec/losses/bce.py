"""Binary cross-entropies: every score is a yes-or-no question of its own.

softplus(-s) = -log sigmoid(s) for the target, softplus(s) = -log(1 - sigmoid(s)) for a negative
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrec.data.negatives import Negatives, NegativesRequest
from seqrec.losses.base import Loss, Pass
from seqrec.losses.candidates import by_tiles


class Gbce(Loss):
    """gBCE (gSASRec, arXiv 2308.07192): the positive's likelihood to the power beta.

        loss_i = 1/(1 + n) [ -beta log sigmoid(s_iy) + sum_k softplus(s_ik) ]
        beta = alpha (t (1 - 1/alpha) + 1/alpha) = 1 - t (1 - alpha),   alpha = n / (V - 1), at most 1

    Mean over the 1 + n scores, then over positions; negatives uniform with replacement, nothing excluded: a negative
    may equal the target, as in the papers. The published code first transforms the positive score to the s' with
    sigmoid(s') = sigmoid(s)**beta, which is inf - inf in float32 from s = 17 on; beta log sigmoid(s) is the same and
    stable.
    """

    def __init__(self, n_items: int, n_negatives: int, gbce_t: float) -> None:
        super().__init__()
        self.request = NegativesRequest(n_negatives, "position", with_replacement=True, exclude_history=False)
        alpha = min(1.0, n_negatives / max(1, n_items - 1))
        self.beta = 1 - gbce_t * (1 - alpha)

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
        return by_tiles(self._row_loss, targets_N, negatives, weights_N)

    def _row_loss(self, positive_GP: Tensor, scores_GPK: Tensor, targets_GP: Tensor, ids_GK: Tensor) -> Tensor:
        questions = 1 + scores_GPK.shape[-1]
        return (self.beta * F.softplus(-positive_GP) + F.softplus(scores_GPK).sum(-1)) / questions


class Bce(Gbce):
    """Binary cross-entropy with n negatives a position: gBCE with beta = 1.

        loss_i = 1/(1 + n) [ softplus(-s_iy) + sum_k softplus(s_ik) ]

    Negatives per position, uniform without replacement, never from the user's training history.
    """

    def __init__(self, n_items: int, n_negatives: int) -> None:
        super().__init__(n_items, n_negatives, gbce_t=0.0)
        self.request = NegativesRequest(n_negatives, "position", with_replacement=False, exclude_history=True)


class BcePlus(Loss):
    """BCE+ as RePlay defines it: sum, not mean, over the negatives, and logarithms kept away from zero.

        loss_i = -log(sigmoid(s_iy) + eps) - sum_k log(1 - sigmoid(s_ik) + eps),   eps = 1e-6

    Negatives per position with replacement; those that equal the target are not rejected, as published. 1 - sigmoid(s)
    is computed as sigmoid(-s), and log(sigmoid(s) + eps) as logaddexp(log sigmoid(s), log eps): no cancellation where
    float32 would round 1 - sigmoid(s) or 1 + eps. The published clamp of every logarithm to +-100 never acts, for each
    lies in [log eps, log(1 + eps)] = [-13.82, 1e-6]; it is left out. eps also means that a confident score gives
    slightly less than 0, and a hopeless one (below log eps) almost no gradient.
    """

    EPSILON = 1e-6

    def __init__(self, request: NegativesRequest) -> None:
        super().__init__()
        self.request = request

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
        return by_tiles(self._row_loss, targets_N, negatives, weights_N)

    def _row_loss(self, positive_GP: Tensor, scores_GPK: Tensor, targets_GP: Tensor, ids_GK: Tensor) -> Tensor:
        return -self._log_likelihood(positive_GP) - self._log_likelihood(-scores_GPK).sum(-1)

    def _log_likelihood(self, scores: Tensor) -> Tensor:
        floor = torch.full_like(scores, math.log(self.EPSILON))
        return torch.logaddexp(F.logsigmoid(scores), floor)
