"""What an expression may call by name: the data set's statistics, a cell's own values, and declared aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from seqrec.config import LOSSES, MODELS, SECTIONS, Frozen, suggest
from seqrec.data.tables import Statistics
from seqrec.errors import message
from sweeps.errors import SpecError

Number = int | float | bool

STATISTICS = tuple(
    Statistics(
        name="", digest="", n_users=1, n_interactions=1, n_items=1, n_train_users=1, train_lengths=((1, 1),)
    ).scope()
)
"""Names that the data set gives."""

SHORT = ("model", "loss", "train")
"""Sections whose keys need no prefix. `evaluation` decides no numbers, and its batch_size would hide training's."""


@dataclass(frozen=True)
class Names:
    """What an expression may call by name."""

    known: Mapping[str, str]
    """Written name -> the key whose value it stands for."""
    refused: Mapping[str, str]
    """Names that exist but cannot be used -> why."""

    def __contains__(self, name: str) -> bool:
        return name in self.known or name in self.refused

    def resolve(self, text: str, place: str, expression: str) -> str:
        if text in self.known:
            return self.known[text]
        if text in self.refused:
            raise SpecError(f"{place}: got {expression!r}; {text} {self.refused[text]}.")
        hint = suggest(text, self.known)
        if "." in text:
            hint = f"declare it under aliases, {text}: <key>" + (f", or {hint}" if hint else "")
        raise SpecError(message(place, expression, f"known names only, {text} is none", hint))


def sections(model: object, loss: object) -> dict[str, type[Frozen]]:
    """The class of every section of a run with this model and this loss."""
    kinds = {"data": SECTIONS["data"], "train": SECTIONS["train"], "evaluation": SECTIONS["evaluation"]}
    if model in MODELS:
        kinds["model"] = MODELS[str(model)]
    if loss in LOSSES:
        kinds["loss"] = LOSSES[str(loss)]
    return kinds


def names(kinds: Mapping[str, type[Frozen]], aliases: Mapping[str, str]) -> Names:
    """The names in scope of a run with these sections."""
    known = {name: name for name in STATISTICS}
    refused: dict[str, str] = {}
    owners: dict[str, str] = {}
    for section, kind in kinds.items():
        for field, info in kind.model_fields.items():
            key = f"{section}.{field}"
            if takes(info.annotation, int, float, bool):
                known[key] = key
            else:
                refused[key] = "is text, and expressions know numbers only"
            if section not in SHORT:
                continue
            if field in owners or field in STATISTICS:
                known.pop(field, None)
                refused[field] = f"could be {owners.get(field, 'of the data set')} or {key}; write it in full"
            elif key in known:
                known[field] = key
            else:
                refused[field] = refused[key]
            owners.setdefault(field, key)
    for alias, key in aliases.items():
        if key in known:
            known[alias] = key
        else:
            refused[alias] = f"stands for {key}, which {refused.get(key, 'this loss does not have')}"
    return Names(known, refused)


def takes(annotation: object, *kinds: type) -> bool:
    """Whether a field of this type, or of a union or annotation around it, can hold one of these kinds."""
    return annotation in kinds or any(takes(part, *kinds) for part in get_args(annotation))
