"""The configuration of every model, one class a name; `seqrec.config` is where the rest of the code finds them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from seqrec.loss_config import Frozen, Probability


class Sasrec(Frozen):
    """SASRec (Kang and McAuley 2018, arXiv 1808.09781) with tied item embeddings.

    The published variants: RECE's and SCE's code is `xavier_uniform` with dropout `before_relu` (the defaults here);
    RePlay's is `xavier_normal` with dropout `after_relu`. Both let pads take part in the softmax of the attention
    (`mask_padding: false`).
    """

    name: Literal["sasrec"]
    max_length: Annotated[int, Field(ge=1, le=4096)] = 200
    hidden_size: Annotated[int, Field(ge=1, le=4096)] = 64
    n_blocks: Annotated[int, Field(ge=1, le=64)] = 2
    n_heads: Annotated[int, Field(ge=1, le=64)] = 1
    dropout: Probability = 0.3
    initialization: Literal["xavier_uniform", "xavier_normal"] = "xavier_uniform"
    ffn_dropout: Literal["before_relu", "after_relu"] = "before_relu"
    mask_padding: bool = False
    """True: pads are no attention keys, and `max_length` decides nothing but what is cut off."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Sasrec:
        if self.hidden_size % self.n_heads:
            raise ValueError(f"expected a divisor of hidden_size ({self.hidden_size})|n_heads|{self.n_heads}")
        return self


class Bert4rec(Frozen):
    """BERT4Rec (Sun et al. 2019, arXiv 1904.06690) as RePlay publishes it: masked items are predicted from both sides.

    The defaults are the published ones. Trained on the most recent `max_length` items themselves, not on their
    successors.
    """

    name: Literal["bert4rec"]
    max_length: Annotated[int, Field(ge=2, le=4096)] = 128
    hidden_size: Annotated[int, Field(ge=2, le=4096)] = 256
    """2 at least: the layer norm's deviation of a single number is undefined."""
    n_blocks: Annotated[int, Field(ge=1, le=64)] = 2
    n_heads: Annotated[int, Field(ge=1, le=64)] = 2
    dropout: Probability = 0.1
    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Of each position of a window, in each epoch anew."""
    head: Literal["untied", "tied"] = "untied"
    """untied: items are scored by a table of their own; tied: by the input's."""
    head_bias: bool = True
    """A bias an item, one more column of the table that scores."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Bert4rec:
        if self.hidden_size % self.n_heads:
            raise ValueError(f"expected a divisor of hidden_size ({self.hidden_size})|n_heads|{self.n_heads}")
        return self


Model = Annotated[Sasrec | Bert4rec, Field(discriminator="name")]

MODELS: dict[str, type[Frozen]] = {"sasrec": Sasrec, "bert4rec": Bert4rec}
