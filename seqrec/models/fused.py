"""The encoder of a captured step, and of evaluation on a GPU: the same functions of the same parameters as the modules
compute, by fused kernels.

Residuals, norms, softmax statistics and accumulation are float32; matrix products and attention take their operands in
the step's low dtype. With float32 as the low dtype it computes what the modules do up to the order of summation, which
is its test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec import kernels
from seqrec.data.batches import Windows
from seqrec.kernels.attention import ragged_attention
from seqrec.kernels.embedding import Sink, embed
from seqrec.kernels.feedforward import relu_dropout
from seqrec.kernels.matrix import product, query_key_value
from seqrec.kernels.norm import Outputs, add_norm
from seqrec.models.base import SequenceModel
from seqrec.models.sasrec import SasrecModel
from seqrec.models.transformer import LAYER_NORM_EPS, Block


class FusedSasrec:
    """SASRec's training path; without dropout while the model is in evaluation mode.

    seed: (1,) int64 on the device, what dropout masks are drawn from; whoever changes its value gets other masks. The
    gradient of the item table is added to `sink.buffer`.
    """

    def __init__(self, model: SasrecModel, low: torch.dtype, seed: Tensor) -> None:
        self.model, self.low, self.seed = model, low, seed
        self.sink = Sink()
        self._masters = [p for name, p in model.named_parameters() if "attention." in name or "feed_forward." in name]
        self._low: dict[Tensor, Tensor] = {
            master: master if low == torch.float32 else torch.empty_like(master, dtype=low, requires_grad=False)
            for master in self._masters
        }

    def refresh(self) -> None:
        """Brings the low copies of the weights up to date; before `states`, after every change of the weights."""
        if self.low != torch.float32:
            with torch.no_grad():
                torch._foreach_copy_(list(self._low.values()), list[Tensor](self._masters))

    def states(self, windows: Windows) -> Tensor:
        """(N, D) float32, as `SasrecModel.states`."""
        model, low, same = self.model, self.low, self.low == torch.float32
        p = model.dropout if model.training else 0.0
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        states, states_low = embed(
            model.item_table.detach(),
            model.position_table,
            windows.items,
            windows.places,
            windows.offsets,
            scale=model.hidden_size**0.5,
            p=p,
            seed=self.seed,
            site=0,
            low=None if same else low,
            sink=self.sink,
        )
        norms = [block.attention_norm for block in blocks[1:]] + [model.norm]
        query, query_low = self._norm(states, blocks[0].attention_norm)
        for number, (block, after) in enumerate(zip(blocks, norms, strict=True)):
            site = 1 + 4 * number
            attention, feed_forward = block.attention, block.feed_forward
            queries, keys_values = query_key_value(
                query_low,
                states if states_low is None else states_low,
                attention.in_proj_weight,
                self._low[attention.in_proj_weight],
                self._low[attention.in_proj_bias],
            )
            attended = ragged_attention(
                queries,
                keys_values,
                attention.in_proj_bias,
                windows.offsets,
                n_places=model.max_length,
                n_heads=attention.n_heads,
                causal=True,
                pads=not model.mask_padding,
                p=p,
                seed=self.seed,
                site=site,
            )
            attended = product(attended, attention.out_proj.weight, self._low[attention.out_proj.weight])
            inner, inner_low = self._norm(query, block.feed_forward_norm, attended, attention.out_proj.bias)
            hidden = product(inner_low, feed_forward.first.weight, self._low[feed_forward.first.weight])
            hidden = relu_dropout(hidden, feed_forward.first.bias, p=p, seed=self.seed, site=site + 1)
            hidden = product(hidden, feed_forward.second.weight, self._low[feed_forward.second.weight])
            last = after is model.norm
            wanted = Outputs(
                total=same and not last, total_low=not same and not last, out=True, out_low=not same and not last
            )
            total, total_low, query_, low_ = add_norm(
                inner,
                hidden,
                feed_forward.second.bias,
                after.weight,
                after.bias,
                seed=self.seed,
                site=site + 2,
                p=p,
                eps=LAYER_NORM_EPS,
                low=low,
                wanted=wanted,
            )
            assert query_ is not None
            query, query_low = query_, query_ if low_ is None else low_
            if not last:
                states, states_low = (total, None) if total is not None else (states, total_low)
        return query

    def _norm(
        self, base: Tensor, norm: torch.nn.LayerNorm, branch: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """norm(base + branch + bias) in float32 and in the low dtype."""
        same = self.low == torch.float32
        _, _, out, out_low = add_norm(
            base,
            branch,
            bias,
            norm.weight,
            norm.bias,
            seed=self.seed,
            site=0,
            p=0.0,
            eps=LAYER_NORM_EPS,
            low=self.low,
            wanted=Outputs(out=True, out_low=not same),
        )
        assert out is not None
        return out, out if out_low is None else out_low


class FusedEncoder:
    """What evaluation asks of a model, by the fused kernels in float32: no rectangles, and pads as one virtual key."""

    def __init__(self, fused: FusedSasrec) -> None:
        self._fused = fused

    def encode(self, windows: Windows) -> Tensor:
        """(R, D) the state of each history from which its next item is predicted. No history may be empty."""
        return self._fused.states(windows).index_select(0, windows.offsets[1:] - 1)

    def item_embeddings(self) -> Tensor:
        """(V, D)"""
        return self._fused.model.item_embeddings()

    def row_cells(self, longest: int) -> int:
        """Histories lie end to end."""
        return longest


def encoder(model: SequenceModel) -> FusedEncoder | None:
    """The fused encoder of a model for evaluation, in whichever mode the model is; None: as of `build`."""
    if not isinstance(model, SasrecModel):
        return None
    seed = torch.zeros(1, dtype=torch.int64, device=model.item_table.device)
    fused = build(model, torch.float32, seed)
    return None if fused is None else FusedEncoder(fused)


def build(model: SequenceModel, low: torch.dtype, seed: Tensor) -> FusedSasrec | None:
    """The fused training path of a model; None where it has none, or its kernels cannot run."""
    if not isinstance(model, SasrecModel):
        return None
    first = next(block for block in model.blocks if isinstance(block, Block))
    if kernels.why_not(seed.device, model.hidden_size, model.hidden_size // first.attention.n_heads):
        return None
    return FusedSasrec(model, low, seed)
