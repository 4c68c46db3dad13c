"""The batches of the upper level."""

from collections.abc import Callable, Sequence
from typing import Any

from peft_bidora.training.row_order import RowOrder, upper_permutation

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
        self._rows, self._collate, self._size = rows, collate, batch_size
        self.order = RowOrder(len(rows), batch_size * accumulation, upper_permutation(seed))

    def next_batch(self) -> list[Batch]:
        """Return the micro-batches of the next batch; the last of an epoch may be smaller."""
        indices = self.order.next_indices()
        parts = (indices[start : start + self._size] for start in range(0, len(indices), self._size))
        return [self._collate([self._rows[index] for index in part]) for part in parts]
