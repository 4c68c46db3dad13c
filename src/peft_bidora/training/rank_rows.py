"""The rows that a rank reads: its part of each batch that all ranks read together.

Each rank reads as many batches as any other. Where the last batch of an epoch has no row for one, it reads a blank:
some row whose labels count for nothing. No row is read twice, unlike with accelerate's BatchSamplerShard.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, Sampler

from peft_bidora.errors import DataError
from peft_bidora.training.ranks import share

IGNORED = -100  # a label that counts for nothing, as in Trainer's count of items

Batch = Any
Collate = Callable[[list[Any]], Batch]


class TrainingBatches(BatchSampler):
    """The batches of a rank: what one process would read in batches of `batch_size · ranks`, divided.

    Args:
        sampler: the order of the rows, the same on all ranks; one with `set_epoch` is told the epoch by accelerate.
        batch_size: rows a rank.
        rank: of this process.
        ranks: how many there are.
        drop_last: whether a smaller last batch is left out.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, rank: int, ranks: int, *, drop_last: bool) -> None:
        self.sampler: Any = sampler
        self._whole, self._rank, self._ranks, self._drop_last = batch_size * ranks, rank, ranks, drop_last

    def __len__(self) -> int:
        """Return the batches of an epoch, of any rank."""
        rows = len(self.sampler)
        return rows // self._whole if self._drop_last else -(-rows // self._whole)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch; none where the last one has no row for this rank."""
        rows = list(self.sampler)
        for start in range(0, len(self) * self._whole, self._whole):
            yield list(share(rows[start : start + self._whole], self._rank, self._ranks))


class EvaluationBatches(BatchSampler):
    """The batches of a rank in an evaluation: in each round all ranks have as many rows, and together the next ones.

    Only a last round of one row a rank may lack some. What is gathered over the ranks is in the order of the rows, and
    accelerate cuts the blanks of the last round off, by `batch_size · num_processes`.

    Args:
        rows: how many there are.
        batch_size: the most rows a rank.
        rank: of this process.
        ranks: how many there are.
    """

    def __init__(self, rows: int, batch_size: int, rank: int, ranks: int) -> None:
        self._rows, self._size, self._rank, self._ranks = rows, batch_size, rank, ranks
        self.batch_size, self.num_processes = 1, ranks

    def __len__(self) -> int:
        """Return the rounds."""
        return len(self._rounds())

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch; none where the last round has no row for this rank."""
        start = 0
        for size in self._rounds():
            first = start + size * self._rank
            yield list(range(min(first, self._rows), min(first + size, self._rows)))
            start += size * self._ranks

    def _rounds(self) -> list[int]:
        """Return the rows a rank of each round."""
        full, rest = divmod(self._rows, self._size * self._ranks)
        sizes = [self._size] * full
        return [*sizes, *([rest // self._ranks] if rest >= self._ranks else []), *([1] if rest % self._ranks else [])]


class CollateOrBlank:
    """Make a batch of a list of rows; of no rows a blank one.

    Args:
        rows: all of them, by index.
        collate: makes a batch of a list of rows.

    Raises:
        DataError: when called, if a batch has no labels that could count for nothing.
    """

    def __init__(self, rows: Sequence[Any], collate: Collate) -> None:
        self._rows, self._collate = rows, collate

    def __call__(self, rows: list[Any]) -> Batch:
        """Return the batch."""
        if rows:
            return self._collate(rows)
        batch = self._collate([self._rows[0]])
        if not isinstance(batch.get("labels"), torch.Tensor):
            raise DataError(
                f"A batch has {', '.join(batch)}; expected labels, by which several processes weigh their parts of a"
                " batch. Train on one process, or name the column labels."
            )
        batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        return batch
