"""Which configurations cannot exist on a data set. No torch: planning lists such cells before anything starts."""

from __future__ import annotations

from seqrec.config import Bce, Bert4rec, CeMinus, Gbce, Rece, Run, Sce
from seqrec.data.tables import Statistics
from seqrec.errors import InfeasibleError, message


def violations(run: Run, statistics: Statistics) -> list[str]:
    """Every law that the run breaks on this data set, as `<key>: got <value>; expected <law>.`; empty: it can exist."""
    train, name, n_items = run.train, statistics.name, statistics.n_items
    found: list[str] = []

    def at_most(key: str, got: int, most: int, law: str) -> None:
        if got > most:
            found.append(message(key, got, f"<= {most}, {law}"))

    if n_items < 2:
        found.append(message("data.path", name, f"at least 2 items in the catalog, not {n_items}"))
    if statistics.n_train_users < 1:
        found.append(message("data.path", name, "at least one user with two training items"))
    elif train.drop_last:
        at_most("train.batch_size", train.batch_size, statistics.n_train_users, f"the users of {name} to train on")

    loss = run.loss
    # A masked window shows one item at least.
    cloze = isinstance(run.model, Bert4rec)
    positions = train.batch_size * (run.model.max_length - 1 if cloze else run.model.max_length)
    if isinstance(loss, Bce) or (isinstance(loss, CeMinus) and loss.exclude_history):
        longest = statistics.longest_distinct_history
        left = n_items - (statistics.longest_train_history if longest is None else longest)
        law = f"the items of {name} that its largest training history leaves"
        if isinstance(loss, CeMinus) and loss.with_replacement:
            if left < 1:
                found.append(
                    message("loss.exclude_history", True, f"false: a training history of {name} has every item")
                )
        else:
            at_most("loss.n_negatives", loss.n_negatives, left, law)
    elif isinstance(loss, CeMinus) and not loss.with_replacement:
        at_most("loss.n_negatives", loss.n_negatives, n_items - 1, f"the items of {name} beside the target")
    elif isinstance(loss, Gbce):
        # Its calibration is a function of the sampling rate n_negatives / (n_items - 1), which must not exceed 1.
        at_most("loss.n_negatives", loss.n_negatives, n_items - 1, f"the items of {name} beside the target")
    elif isinstance(loss, Sce):
        at_most("loss.bucket_size_y", loss.bucket_size_y, n_items, f"the items of {name}")
        for key in ("n_buckets", "bucket_size_x"):
            law = "batch_size * (max_length - 1)" if cloze else "batch_size * max_length"
            at_most(f"loss.{key}", getattr(loss, key), positions, law)
    elif isinstance(loss, Rece):
        most = n_items * loss.buckets_per_chunk
        at_most("loss.n_buckets", loss.n_buckets, most, f"buckets_per_chunk * the items of {name}: no chunk is empty")
    return found


def check(run: Run, statistics: Statistics) -> None:
    """Raises InfeasibleError with the first law that the run breaks on this data set."""
    for violation in violations(run, statistics):
        raise InfeasibleError(violation)
