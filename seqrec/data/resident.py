"""The training histories of one data set, kept on a device for the trainings of a process that follow one another."""

from __future__ import annotations

import torch

from seqrec import meters
from seqrec.data.batches import DeviceSequences
from seqrec.data.tables import Sequences


class Resident:
    """Holds one data set at a time.

    What is kept is what every training holds from its beginning to its end anyway, and it is on the device before
    anything else of the training is: so a training's peak of memory counts it once, and the same number of bytes, be it
    the first of the process or the tenth. Histories for evaluation come and go with each evaluation and are not kept.
    """

    def __init__(self) -> None:
        self._of: Sequences | None = None
        self._held: DeviceSequences | None = None

    def of(self, sequences: Sequences, device: torch.device) -> DeviceSequences:
        """The sequences on the device: those kept if they are of this very object, else new ones, which are kept from
        now on; what was kept before is dropped first. Nobody may write to them."""
        place = torch.empty(0, device=device).device  # cuda has a number now
        if self._held is not None and self._of is sequences and self._held.items.device == place:
            return self._held
        self.drop()
        self._held, self._of = DeviceSequences.of(sequences, place), sequences
        return self._held

    def drop(self) -> None:
        """Keep nothing, and give its memory back."""
        if self._held is None:
            return
        place = self._held.items.device
        self._of = self._held = None
        meters.return_cache(place)
