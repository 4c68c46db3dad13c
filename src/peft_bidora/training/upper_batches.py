"""The batches of the upper level."""

from collections.abc import Callable, Sequence
from typing import Any

from peft_bidora.training.rank_rows import CollateOrBlank
from peft_bidora.training.ranks import share
from peft_bidora.training.row_order import RowOrder, upper_permutation

Batch = dict[str, Any]


class UpperBatches:
    """Endless batches of the upper split, each row once an epoch; exact on resume, also by another number of ranks.

    Args:
        rows: the encoded rows, by index.
        collate: makes a batch of a list of rows.
        batch_size: rows a micro-batch, of each rank.
        accumulation: micro-batches a batch.
        seed: of the order.
        rank: of this process.
        ranks: how many read a batch together, each its part.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], Batch],
        batch_size: int,
        accumulation: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._rows, self._collate, self._whole = rows, CollateOrBlank(rows, collate), batch_size * ranks
        self._rank, self._ranks = rank, ranks
        self.order = RowOrder(len(rows), self._whole * accumulation, upper_permutation(seed))

    def next_batch(self) -> list[Batch]:
        """Return this rank's micro-batches of the next batch, as many as any rank's; the last may be smaller."""
        indices = self.order.next_indices()
        micro_batches = (indices[start : start + self._whole] for start in range(0, len(indices), self._whole))
        parts = (share(each, self._rank, self._ranks) for each in micro_batches)
        return [self._collate([self._rows[index] for index in part]) for part in parts]
