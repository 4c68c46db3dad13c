"""Capture, replay and restore the state of torch's random number generators."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The state of the CPU generator and of every CUDA device's."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]


def capture_random_state() -> RandomState:
    """Return a copy of the present state of every generator."""
    # A process that has not used CUDA draws nothing from it: do not initialise the devices for their state.
    cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    return RandomState(torch.get_rng_state(), cuda)


def set_random_state(state: RandomState) -> None:
    """Put every generator into the given state."""
    torch.set_rng_state(state.cpu)
    if state.cuda:
        torch.cuda.set_rng_state_all(list(state.cuda))


@contextmanager
def preserved_random_state() -> Iterator[RandomState]:
    """Put the generators back into their present state at the end, whatever happens in between."""
    state = capture_random_state()
    try:
        yield state
    finally:
        set_random_state(state)


@dataclass(frozen=True)
class ReplayedLoss:
    """A loss with the generator state that each of its evaluations draws from.

    Two evaluations see the same dropout masks, so that their difference is that of the parameters alone.

    Args:
        loss: returns a scalar at the present parameters.
        state: the generators' state at the start of each evaluation.
    """

    loss: Callable[[], Tensor]
    state: RandomState

    def __call__(self) -> Tensor:
        """Return the loss under `state`; the generators are left as they were found."""
        with preserved_random_state():
            set_random_state(self.state)
            return self.loss()
