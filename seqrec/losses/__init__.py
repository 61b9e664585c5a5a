"""The losses of the papers, by name: `build` makes one from its configuration."""

from __future__ import annotations

from seqrec import config
from seqrec.data.negatives import NegativesRequest
from seqrec.losses.base import Loss
from seqrec.losses.bce import Bce, BcePlus, Gbce
from seqrec.losses.ce import Cce, Ce
from seqrec.losses.ce_minus import CceMinus, CeMinus
from seqrec.losses.rece import Rece
from seqrec.losses.sce import Sce

__all__ = ["Loss", "build"]


def build(loss: config.Loss, n_items: int) -> Loss:
    """The loss of a run over a catalog of n_items. Raises InfeasibleError where the catalog is too small for it."""
    match loss:
        case config.Ce():
            return Ce(loss.chunk_bytes)
        case config.Cce():
            return Cce(loss.block_items)
        case config.Bce():
            return Bce(n_items, loss.n_negatives)
        case config.BcePlus():
            return BcePlus(NegativesRequest(loss.n_negatives, "position", loss.sampling))
        case config.Gbce():
            return Gbce(n_items, loss.n_negatives, loss.gbce_t)
        case config.CeMinus():
            request = NegativesRequest(
                loss.n_negatives,
                loss.negatives_scope,
                loss.sampling,
                loss.with_replacement,
                loss.exclude_history,
                loss.group_size,
            )
            return CeMinus(request, n_items, loss.correction)
        case config.CceMinus():
            return CceMinus(loss.n_negatives, n_items, loss.sampling, loss.correction)
        case config.Sce():
            return Sce(n_items, loss.n_buckets, loss.bucket_size_x, loss.bucket_size_y, loss.mix_x)
        case config.Rece():
            return Rece(loss.n_buckets, loss.n_extra_chunks, loss.rounds, loss.buckets_per_chunk)
