"""The order in which a level reads its rows: f(seed, epoch), with no draw from a global generator; exact on resume."""

from collections.abc import Callable

import torch
from accelerate.data_loader import SeedableRandomSampler

Permutation = Callable[[int, int], list[int]]  # rows, epoch -> their indices


class RowOrder:
    """Endless batches of row indices, each row once an epoch; the last batch of an epoch may be smaller.

    Args:
        rows: how many there are.
        batch_size: rows a batch.
        permutation: the order of an epoch.
    """

    def __init__(self, rows: int, batch_size: int, permutation: Permutation) -> None:
        self._rows, self._batch_size, self._permutation = rows, batch_size, permutation
        self._epoch = 0
        self._position = 0
        self._drawn: tuple[int, list[int]] = (-1, [])  # an epoch and the indices of its rows

    def next_indices(self) -> list[int]:
        """Return the indices of the next batch."""
        if self._position >= self._rows:
            self._epoch, self._position = self._epoch + 1, 0
        start, self._position = self._position, min(self._position + self._batch_size, self._rows)
        if self._drawn[0] != self._epoch:  # skipping to an epoch costs nothing
            self._drawn = self._epoch, self._permutation(self._rows, self._epoch)
        return self._drawn[1][start : self._position]

    def state_dict(self) -> dict[str, int]:
        """Return where the reading stands, as plain numbers."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self._epoch, self._position = state["epoch"], state["position"]


def upper_permutation(seed: int) -> Permutation:
    """Return the order of the upper level."""

    def permutation(rows: int, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(rows, generator=generator).tolist()
        return order

    return permutation


def lower_permutation(seed: int) -> Permutation:
    """Return the order in which Trainer reads its train rows under a seed."""

    def permutation(rows: int, epoch: int) -> list[int]:
        sampler = SeedableRandomSampler(range(rows), data_seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    return permutation
