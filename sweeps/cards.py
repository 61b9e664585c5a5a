"""GPUs by name: how much of their memory a process can get. No torch, no ray."""

from __future__ import annotations

import re
from dataclasses import dataclass

from seqrec import config
from seqrec.errors import UserError, message

GIB = 2**30
USABLE_GIB = {
    "h100-80gb": 79, "h200-141gb": 139, "a100-80gb": 79, "a100-40gb": 39, "l40s-48gb": 44, "l4-24gb": 22,
    "v100-32gb": 31, "v100-16gb": 15, "t4-16gb": 14, "rtx4090-24gb": 23,
}  # fmt: skip
"""What the driver leaves of the memory in the name, in whole GiB; of the H100 as measured, of others as documented."""
TIMED = "h100-80gb"
"""The card whose times are known: `seqrec.epoch_time`."""


@dataclass(frozen=True)
class Card:
    name: str
    memory_bytes: int

    @property
    def is_timed(self) -> bool:
        return self.name == TIMED


def card(text: str) -> Card:
    """A card by its name, or one of so much memory: 80GiB, 24GB. Raises UserError."""
    name = text.strip().lower()
    if name in USABLE_GIB:
        return Card(name, USABLE_GIB[name] * GIB)
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gib|gb)", name)
    if size and float(size[1]) > 0:
        return Card(text.strip(), int(float(size[1]) * (GIB if size[2] == "gib" else 10**9)))
    law = f"a size such as 80GiB, or one of {', '.join(USABLE_GIB)}"
    raise UserError(message("--card", text, law, config.suggest(name, USABLE_GIB)))
