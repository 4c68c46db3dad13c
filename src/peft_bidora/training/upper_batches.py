"""The order in which the upper level reads its rows: f(seed, epoch), with no draw from a global generator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Batch = dict[str, Any]


class UpperBatches:
    """Endless batches of the upper split, each row once an epoch; exact on resume.

    Args:
        rows: the encoded rows, by index.
        collate: makes a batch of a list of rows.
        batch_size: rows a micro-batch.
        accumulation: micro-batches a batch.
        seed: of the order.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], Batch],
        batch_size: int,
        accumulation: int,
        seed: int,
    ) -> None:
        self._rows, self._collate, self._seed = rows, collate, seed
        self._batch_size, self._accumulation = batch_size, accumulation
        self._epoch = 0
        self._position = 0
        self._order: tuple[int, list[int]] = (-1, [])  # an epoch and the indices of its rows

    def next_batch(self) -> list[Batch]:
        """Return the micro-batches of the next batch; the last of an epoch may be smaller."""
        if self._position >= len(self._rows):
            self._epoch, self._position = self._epoch + 1, 0
        order = self._order_of(self._epoch)
        size = self._batch_size
        stop = min(self._position + size * self._accumulation, len(order))
        starts = range(self._position, stop, size)
        self._position = stop
        return [self._collate([self._rows[index] for index in order[a : min(a + size, stop)]]) for a in starts]

    def state_dict(self) -> dict[str, int]:
        """Return where the reading stands, as plain numbers."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self._epoch, self._position = state["epoch"], state["position"]

    def _order_of(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:  # one generator for each epoch: skipping to an epoch costs nothing
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = epoch, torch.randperm(len(self._rows), generator=generator).tolist()
        return self._order[1]
