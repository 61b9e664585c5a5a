"""The configuration of every loss, one class a name; `seqrec.config` is where the rest of the code finds them."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Ce(Frozen):
    """Full softmax cross-entropy over the catalog, in chunks of rows."""

    name: Literal["ce"]
    chunk_bytes: Annotated[int, Field(ge=2**16)] = 2**27
    """Most bytes of logits alive at a time."""


class Cce(Frozen):
    """Cut cross-entropy (arXiv 2411.09009): the value of `ce` with a log-sum-exp over blocks of the catalog."""

    name: Literal["cce"]
    block_items: Count = 4096
    """Items a block."""


class Bce(Frozen):
    """Binary cross-entropy, mean over the positive and its negatives, which are drawn per position, without replacement
    and never from the user's training history."""

    name: Literal["bce"]
    n_negatives: Count


class BcePlus(Frozen):
    """RePlay's binary cross-entropy: sum over the negatives, drawn per position with replacement."""

    name: Literal["bce_plus"]
    n_negatives: Count
    sampling: Literal["uniform", "popularity"] = "uniform"


class Gbce(Frozen):
    """gBCE (gSASRec, arXiv 2308.07192); negatives per position, uniform with replacement, nothing excluded."""

    name: Literal["gbce"]
    n_negatives: Count
    gbce_t: Annotated[float, Field(ge=0.0, le=1.0)] = 0.75


class CeMinus(Frozen):
    """CE-: softmax over the positive and sampled negatives. The RECE and SCE papers: user, uniform, without
    replacement, no correction, history excluded (the defaults). The CCE- paper: position, uniform, with replacement,
    log_count."""

    name: Literal["ce_minus"]
    n_negatives: Count
    negatives_scope: Literal["user", "position", "group", "batch"] = "user"
    group_size: Count = 128
    """Rows that share one draw under `negatives_scope: group`; rows are dealt to groups in turn, so that neighbours in
    a group belong to different users."""
    sampling: Literal["uniform", "popularity", "in_batch"] = "uniform"
    """in_batch: among the batch's targets."""
    with_replacement: bool = False
    exclude_history: bool = True
    """Never draw from the user's training history (scopes user and position)."""
    correction: Literal["none", "log_count", "log_q"] = "none"

    @model_validator(mode="after")
    def _history_has_an_owner(self) -> CeMinus:
        if self.exclude_history and self.negatives_scope in ("group", "batch"):
            raise ValueError(
                f"expected false with negatives_scope {self.negatives_scope} (its rows belong to several users)"
                f"|exclude_history|{self.exclude_history}"
            )
        if self.exclude_history and self.sampling != "uniform":
            raise ValueError(
                f"expected false with sampling {self.sampling} (its probabilities are over the whole catalog)"
                f"|exclude_history|{self.exclude_history}"
            )
        if self.sampling != "uniform" and not self.with_replacement:
            raise ValueError(f"expected true with sampling {self.sampling}|with_replacement|{self.with_replacement}")
        return self


class CceMinus(Frozen):
    """CCE- (arXiv 2509.09682): CE- per position with replacement and log-count correction, rejected draws masked."""

    name: Literal["cce_minus"]
    n_negatives: Count
    sampling: Literal["uniform", "popularity"] = "uniform"
    correction: Literal["none", "log_count", "log_q"] = "log_count"


class Sce(Frozen):
    """Scalable cross-entropy (arXiv 2409.18721): hardest items and positions of random buckets."""

    name: Literal["sce"]
    n_buckets: Count
    bucket_size_x: Count
    bucket_size_y: Count
    mix_x: bool = False


class Rece(Frozen):
    """RECE (arXiv 2408.02354): softmax over the items that fall near a position in random hash chunks."""

    name: Literal["rece"]
    n_buckets: Count
    n_extra_chunks: Annotated[int, Field(ge=0)] = 1
    rounds: Annotated[int, Field(ge=1, le=4096)] = 1
    buckets_per_chunk: Count = 1

    @model_validator(mode="after")
    def _chunks_are_whole(self) -> Rece:
        if self.n_buckets % self.buckets_per_chunk:
            raise ValueError(
                f"expected a divisor of loss.n_buckets ({self.n_buckets})|buckets_per_chunk|{self.buckets_per_chunk}"
            )
        return self


Loss = Annotated[Ce | Bce | BcePlus | Gbce | CeMinus | Sce | Rece | Cce | CceMinus, Field(discriminator="name")]

LOSSES: dict[str, type[Frozen]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind
    for kind in (Ce, Bce, BcePlus, Gbce, CeMinus, Sce, Rece, Cce, CceMinus)
}
