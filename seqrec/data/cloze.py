"""Masked items: batches whose windows hide some of their items, which are to be told from the rest (BERT4Rec).

Which items an epoch hides is drawn on the device for the whole training set when the epoch is planned. The host learns
only how many of each window are hidden, by one copy: enough to know every batch's shape.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from seqrec import seeding
from seqrec.data.batches import Batch, Batches, Capacity, DeviceSequences, Plan, Windows, layout, with_items
from seqrec.data.tables import Sequences


class ClozeBatches(Batches):
    """Cloze: a window is the `max_length` most recent items, each of them masked with probability `mask_probability`;
    the targets are the masked items themselves.

    A window without a masked item has its last one masked. If all of a window are masked, its last but one is not,
    unless it is the only one. So every window gives a target, and one with two items or more shows an item. The
    published code looks for windows without a mask by a test that left-padded ones cannot pass: they then give no
    target, and a batch of such windows a loss of 0 / 0.
    """

    def __init__(
        self,
        train: Sequences,
        *,
        max_length: int,
        batch_size: int,
        drop_last: bool,
        seed: int,
        device: torch.device | str,
        mask_probability: float,
        held: DeviceSequences | None = None,
    ) -> None:
        super().__init__(
            train,
            max_length=max_length,
            batch_size=batch_size,
            drop_last=drop_last,
            seed=seed,
            device=device,
            held=held,
        )
        self.mask_probability = mask_probability
        self._trained = torch.from_numpy(self.users).to(self.device)
        # Of all items of all histories; a captured step holds its address, so an epoch's draw is written into it.
        self._masked = torch.zeros(len(train.items), dtype=torch.bool, device=self.device)

    def plan(self, epoch: int) -> Plan:
        order = self.order(epoch)
        users = self.filled(order)
        counts = self._mask(epoch)
        # The one copy of an epoch from the device.
        targets = counts.index_select(0, users[: len(order)]).cpu().numpy()
        return Plan(users, self.sizes(order, targets))

    def _mask(self, epoch: int) -> Tensor:
        """Draws the masks of an epoch; (n_sequences + 1,) int64 how many items of each window are masked, 0 for users
        who are not trained on."""
        generator = torch.Generator(self.device).manual_seed(seeding.derive(self.seed, epoch, "masks"))
        masked, users = self._masked, self._trained
        masked.bernoulli_(self.mask_probability, generator=generator)
        ends = self.sequences.ends.index_select(0, users)
        lengths = self.sequences.lengths.index_select(0, users).clamp(max=self.max_length)
        # With the copy that is summed 8 bytes an item, for the time of planning.
        before = torch.zeros(len(masked) + 1, dtype=torch.int32, device=self.device)
        torch.cumsum(masked, 0, dtype=torch.int32, out=before[1:])
        count = (before.index_select(0, ends) - before.index_select(0, ends - lengths)).long()
        none, whole = count == 0, (count == lengths) & (lengths > 1)
        last = ends - 1
        masked.index_copy_(0, last, masked.index_select(0, last) | none)
        masked.index_copy_(0, last - 1, masked.index_select(0, last - 1) & ~whole)
        return torch.zeros_like(self.sequences.lengths).index_copy(0, users, count + none.long() - whole.long())

    def gather(self, users_B: Tensor, size: Capacity) -> Batch:
        sequences = self.sequences
        lengths_B = sequences.lengths[users_B].clamp(max=self.max_length)
        windows, source = layout(sequences.ends[users_B] - lengths_B, lengths_B, size, self.max_length)
        spare = size.rows - len(users_B)
        # Spare rows must stay inside an array that may be shorter than they are.
        source = source.remainder_(len(sequences.items)) if spare else source
        masked = self._masked.index_select(0, source)
        windows = replace(with_items(windows, sequences.items, source), masked=masked)
        number = torch.arange(size.targets, device=self.device)
        weights = count = None
        if spare:
            asked = masked & (windows.rows < len(users_B))
            so_far = asked.cumsum(0)
            count = so_far[-1]
            weights = (number < count) / count
            # Spare targets are spread over the positions: a thousand gradients, though 0, in one row would be slow.
            predicted = torch.where(number < count, torch.searchsorted(so_far, number + 1), number % size.positions)
            users_B = torch.nn.functional.pad(users_B, (0, spare), value=len(sequences.lengths) - 1)
        else:
            predicted = torch.searchsorted(masked.cumsum(0), number + 1)
        targets = windows.items.index_select(0, predicted)
        return Batch(windows, targets, users_B, predicted, weights, count)


def asked_next(windows: Windows, max_length: int) -> Windows:
    """The windows that ask for each history's next item: its last `max_length` - 1 items, and a masked place behind.

    R histories of N positions give N + R, known on the host. A history of `max_length` items gives up its first; the
    positions that are then too many lie in rows behind the R, which ask nothing.
    """
    device, N, R = windows.items.device, len(windows.items), windows.n_rows
    spare = -(-R // max_length) if windows.longest >= max_length else 0
    longest = min(windows.longest + 1, max_length)
    ends = windows.offsets[1:]
    kept = windows.offsets.diff().clamp(max=max_length - 1)
    asking, source = layout(ends - kept, kept + 1, Capacity(N + R, R, R + spare, longest), max_length)
    masked = torch.zeros(N + R, dtype=torch.bool, device=device)
    masked.index_fill_(0, asking.offsets[1 : R + 1] - 1, True)
    # At a masked place, whatever item: the model does not look at it. `source` may point behind the last there.
    return replace(with_items(asking, windows.items, source.clamp_(max=N - 1)), masked=masked)
