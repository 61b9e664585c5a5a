"""What the memory command is asked about: losses x batch sizes x catalogs, each a validated run. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqrec import config, data, feasibility, yamlfile
from seqrec.data.tables import Split, Statistics
from seqrec.errors import ConfigError, UserError, message
from seqrec.memory import synthetic
from seqrec.memory.components import REFERENCE_CE, Breakdown, predict

OPTIONS = {
    "loss.name": "--loss",
    "model.name": "--model",
    "train.batch_size": "--batch-size",
    "data.path": "--data",
}
"""Keys of a run that have an option of their own."""


@dataclass(frozen=True, eq=False)
class Case:
    """One configuration and its data."""

    loss: str
    """Name of the run's loss, or reference_ce: then the run's own is ce."""
    run: config.Run
    statistics: Statistics
    split: Split | None = None
    """The data set; None: synthetic, made when it is needed."""

    @property
    def reference_ce(self) -> bool:
        return self.loss == REFERENCE_CE

    def predict(self) -> Breakdown:
        return predict(self.run, self.statistics, reference_ce=self.reference_ce)


def cases(
    *,
    losses: Sequence[str],
    model: str,
    batch_sizes: Sequence[int],
    catalog_sizes: Sequence[int],
    users: int | None = None,
    length_mean: float | None = None,
    data_path: str | None = None,
    assignments: Sequence[str] = (),
) -> list[Case]:
    """Every combination, in the order given, validated. A loss's key reaches the losses that have it.

    Raises UserError for values outside their laws, unknown names and keys, missing keys, configurations that cannot
    exist on their catalog, and data files as `seqrec.data.load` does.
    """
    _check_data(batch_sizes, catalog_sizes, users, length_mean, data_path)
    _check_names("--loss", losses, (*config.LOSSES, REFERENCE_CE))
    _check_names("--model", [model], tuple(config.MODELS))
    changes = [_assignment(text, losses, data_path is not None) for text in assignments]
    runs = [(loss, _run(loss, model, batch_size, data_path, changes)) for loss in losses for batch_size in batch_sizes]
    found: list[Case] = []
    split = data.load(runs[0][1].data) if data_path is not None else None
    for loss, run in runs:
        if split is not None:
            found.append(Case(loss, run, split.statistics, split))
            continue
        n_users = users or run.train.batch_size
        length = run.model.max_length
        made = [synthetic.statistics(n_users, n_items, length, length_mean) for n_items in catalog_sizes]
        found += [Case(loss, run, statistics) for statistics in made]
    for case in found:
        feasibility.check(case.run, case.statistics)
    return found


def _check_data(
    batch_sizes: Sequence[int],
    catalog_sizes: Sequence[int],
    users: int | None,
    length_mean: float | None,
    data_path: str | None,
) -> None:
    for batch_size in batch_sizes:
        if batch_size < 1:
            raise ConfigError(message("--batch-size", batch_size, "an integer >= 1"))
    if data_path is not None:
        for option, given in (("--catalog-size", catalog_sizes), ("--users", users), ("--length-mean", length_mean)):
            if given:
                raise UserError(message(option, given, "none beside --data, which has its own"))
        return
    if not catalog_sizes:
        raise UserError("--catalog-size: missing; expected the number of items, or a data set (--data).")
    for n_items in catalog_sizes:
        if not 2 <= n_items <= 2**31 - 1:
            raise ConfigError(message("--catalog-size", n_items, "an integer from 2 to 2147483647"))
    if users is not None and users < max(batch_sizes):
        raise ConfigError(message("--users", users, f"at least the batch size ({max(batch_sizes)})"))
    if length_mean is not None and not 2 <= length_mean <= 1e6:
        raise ConfigError(message("--length-mean", length_mean, "a number from 2 to 1e6: items a user"))


def _check_names(option: str, names: Sequence[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(message(option, name, f"one of {', '.join(known)}", config.suggest(name, known)))


Change = tuple[str, str, Any]
"""(section, field, value) of one `--set`."""


def _assignment(text: str, losses: Sequence[str], has_data: bool) -> Change:
    key, equals, written = text.partition("=")
    section, dot, field = key.partition(".")
    if not (equals and dot and field):
        raise ConfigError(message("--set", text, "KEY=VALUE, as in loss.n_negatives=256"))
    if key in OPTIONS:
        raise ConfigError(f"--set {key}: cannot be set; expected {OPTIONS[key]}.")
    if section == "data" and not has_data:
        raise ConfigError(f"--set {key}: cannot be set without a data set; expected --data beside it.")
    known = {name for loss in losses for name in config.known_keys(loss=_own(loss))}
    if key not in known:
        hint = config.suggest(key, known)
        raise ConfigError(f"--set {key}: unknown key." + (f" hint: {hint}" if hint else ""))
    return section, field, yamlfile.loads(f"value: {written}", f"--set {key}")["value"]


def _own(loss: str) -> str:
    """The loss whose keys this one takes."""
    return "ce" if loss == REFERENCE_CE else loss


def _run(loss: str, model: str, batch_size: int, data_path: str | None, changes: Sequence[Change]) -> config.Run:
    own = _own(loss)
    tree: dict[str, dict[str, Any]] = {
        "data": {"path": data_path or "synthetic"},
        "model": {"name": model},
        "loss": {"name": own},
        "train": {"batch_size": batch_size},
    }
    fields: Mapping[str, Any] = config.LOSSES[own].model_fields
    for section, field, value in changes:
        if section != "loss" or field in fields:
            tree.setdefault(section, {})[field] = value
    return config.parse(tree, f"--loss {loss}")
