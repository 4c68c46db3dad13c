"""Capture, replay and restore the state of the random number generators: torch's, numpy's and Python's.

A model may draw from any of them in its forward pass: the masks of SpecAugment are numpy's.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """The states of all generators, those of every device of the accelerator (CUDA's, XPU's, MPS's) among them.

    Args:
        cpu: of torch.
        devices: of torch; none where the process has drawn nothing from them.
        python: of `random`.
        numpy: of numpy's global generator; None where numpy is not imported.
    """

    cpu: Tensor
    devices: tuple[Tensor, ...]
    python: Any = None
    numpy: Any = None


def capture_random_state() -> RandomState:
    """Return a copy of the present state of every generator."""
    numpy = sys.modules.get("numpy")
    return RandomState(
        torch.get_rng_state(), _device_states(), random.getstate(), None if numpy is None else numpy.random.get_state()
    )


def _device_states() -> tuple[Tensor, ...]:
    devices = _used_accelerator()
    if devices is None:
        return ()
    if hasattr(devices, "get_rng_state_all"):
        return tuple(devices.get_rng_state_all())
    return (devices.get_rng_state(),)  # there is one MPS device


def set_random_state(state: RandomState) -> None:
    """Put every generator into the given state."""
    torch.set_rng_state(state.cpu)
    if state.python is not None:
        random.setstate(state.python)
    if state.numpy is not None:
        sys.modules["numpy"].random.set_state(state.numpy)
    if not state.devices:
        return
    devices = _used_accelerator()
    if hasattr(devices, "set_rng_state_all"):
        devices.set_rng_state_all(list(state.devices))
    else:
        devices.set_rng_state(state.devices[0])


def _used_accelerator() -> Any:
    """Return the module of the accelerator (`torch.cuda`, ...), None while the process has drawn nothing from it."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return None
    devices = torch.get_device_module(accelerator)
    used = devices.is_initialized() if hasattr(devices, "is_initialized") else True
    return devices if used else None  # asking for a state would initialise the devices


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
