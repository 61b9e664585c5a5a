"""A step's allocations replayed on paper: what is taken and given back, in order, and the most that was held at a time.

The device's allocator hands out whole blocks of 512 bytes, and its own count is of those. What is larger than 10 MiB it
takes from the device in multiples of 2 MiB, and does not split off a rest of 1 MiB or less. Blocks that are used again
may be larger than was asked for by other rests; that is not followed.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK = 512
LARGE, SEGMENT, LEAST_REST = 10 * 2**20, 2**21, 2**20


def rounded(size: int) -> int:
    """Bytes that the allocator counts for a tensor of `size` bytes."""
    whole = -(-size // BLOCK) * BLOCK
    if whole >= LARGE:
        segments = -(-whole // SEGMENT) * SEGMENT
        if segments - whole <= LEAST_REST:
            return segments
    return whole


class Held(NamedTuple):
    """Memory that was taken, for a purpose."""

    size: int
    purpose: str


class Tape:
    """The bytes alive in a step, in all and by purpose; at its worst moment too."""

    def __init__(self) -> None:
        self.alive = self.peak = 0
        self.moment = ""
        """What the tape is in the middle of; set by whoever writes on it."""
        self.by: dict[str, int] = {}
        self.peak_moment = ""
        self.peak_by: dict[str, int] = {}

    def take(self, size: int, purpose: str = "work") -> Held:
        """One tensor of `size` bytes."""
        size = rounded(size)
        self.alive += size
        self.by[purpose] = self.by.get(purpose, 0) + size
        if self.alive > self.peak:
            self.peak, self.peak_moment, self.peak_by = self.alive, self.moment, self.by.copy()
        return Held(size, purpose)

    def drop(self, *held: Held | None) -> None:
        """Gives tensors back. None: there was none."""
        for one in held:
            if one is not None:
                self.alive -= one.size
                self.by[one.purpose] -= one.size

    def pass_by(self, *sizes: int) -> None:
        """Tensors that are alive together for a moment."""
        self.drop(*[self.take(size) for size in sizes])
