"""The processes of one training run, its ranks: who is first, what they agree on, and how they differ.

All are trivial in a process that runs alone.
"""

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from transformers import set_seed

from peft_bidora import launched

T = TypeVar("T")
APART = 1_000_003  # the seeds of neighbouring ranks, or of other processes that share a work


def join() -> None:
    """Let the processes meet, if there are several: over gloo without an accelerator, else over its own backend."""
    if launched.count() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available())


def leave() -> None:
    """Let the processes part, once all are done."""
    if count() > 1:
        dist.barrier()
        dist.destroy_process_group()


def count() -> int:
    """Return the number of ranks; they have met."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this one, from 0."""
    return dist.get_rank() if count() > 1 else 0


def wait() -> None:
    """Wait until all ranks are here."""
    if count() > 1:
        dist.barrier()


def on_first(work: Callable[[], T]) -> T:
    """Run work of files on the first rank; all ranks return what it returned, or raise what it raised.

    Args:
        work: what it returns can be pickled.
    """
    if count() == 1:
        return work()
    told: list[Any] = [None]
    if rank() == 0:
        value, error = _outcome(work)
        told = [(value, _sendable(error))]
        dist.broadcast_object_list(told)
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # there was no error
    dist.broadcast_object_list(told)
    value, error = told[0]
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def together(work: Callable[[], T]) -> T:
    """Run work on every rank; if it raises on one, all raise: their own error, or that of the first that has one."""
    if count() == 1:
        return work()
    value, error = _outcome(work)
    errors: list[BaseException | None] = [None] * count()
    dist.all_gather_object(errors, _sendable(error))
    found = error or next((each for each in errors if each is not None), None)
    if found is not None:
        raise found
    return value  # type: ignore[return-value]  # there was no error


def merged(values: list[T | None]) -> list[Any]:
    """Return a list in which each rank has its own values, and None elsewhere, with the values of all."""
    if count() == 1:
        return values
    own = {place: value for place, value in enumerate(values) if value is not None}
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, own)
    for each in found:
        for place, value in each.items():
            values[place] = value
    return values


def seed_by_rank(seed: int) -> None:
    """Give each rank its own draws: of dropout, say. The first draws what a process alone would.

    Args:
        seed: that all have so far.
    """
    if rank() > 0:
        set_seed((seed + APART * rank()) % 2**32)


def share(rows: Sequence[T], rank: int, ranks: int) -> Sequence[T]:
    """Return a rank's part of the rows of a batch, a slice; the parts are of one size or differ by one row."""
    return rows[len(rows) * rank // ranks : len(rows) * (rank + 1) // ranks]


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _sendable(error: Exception | None) -> Exception | None:
    """Return the error, or one that says the same where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
