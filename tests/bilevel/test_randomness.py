"""Replay and restoration of the random number generators."""

import random

import numpy as np
import pytest
import torch

from peft_bidora.bilevel.randomness import (
    ReplayedLoss,
    capture_random_state,
    preserved_random_state,
    set_random_state,
)


def failing() -> torch.Tensor:
    torch.rand(3)
    raise RuntimeError("half-way")


def test_captured_state_is_a_copy_that_later_draws_leave_alone():
    state = capture_random_state()
    first = torch.rand(5)
    torch.rand(100)
    set_random_state(state)
    assert torch.equal(torch.rand(5), first)


def test_replayed_loss_is_identical_at_every_evaluation():
    torch.manual_seed(0)
    loss = ReplayedLoss(lambda: torch.nn.functional.dropout(torch.ones(50), 0.5), capture_random_state())
    expected = torch.nn.functional.dropout(torch.ones(50), 0.5)
    torch.rand(7)
    first = loss()
    torch.rand(3)
    assert torch.equal(first, expected)
    assert torch.equal(loss(), expected)


def test_replayed_loss_leaves_the_generators_as_they_were():
    loss = ReplayedLoss(lambda: torch.rand(9), capture_random_state())
    torch.rand(4)
    before = torch.get_rng_state()
    loss()
    assert torch.equal(torch.get_rng_state(), before)


def test_replayed_loss_leaves_the_generators_also_on_error():
    loss = ReplayedLoss(failing, capture_random_state())
    torch.rand(4)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="half-way"):
        loss()
    assert torch.equal(torch.get_rng_state(), before)


def test_preserved_state_is_put_back_also_on_error():
    before = torch.get_rng_state()
    with preserved_random_state() as state:
        torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(state.cpu, before)
    with pytest.raises(RuntimeError, match="half-way"), preserved_random_state():
        failing()
    assert torch.equal(torch.get_rng_state(), before)


def test_capture_does_not_initialise_cuda():
    if torch.cuda.is_initialized():
        pytest.skip("another test has used CUDA already")
    assert capture_random_state().devices == ()
    assert not torch.cuda.is_initialized()


class OneDevice:
    """An accelerator with one generator, as torch.mps has."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def get_rng_state(self) -> torch.Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.generator.set_state(state)


class TwoDevices:
    """An accelerator with two generators, as torch.cuda and torch.xpu may have."""

    def __init__(self) -> None:
        self.devices = [OneDevice(), OneDevice()]
        self.generator = self.devices[1].generator

    def is_initialized(self) -> bool:
        return True

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [device.get_rng_state() for device in self.devices]

    def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
        for device, state in zip(self.devices, states, strict=True):
            device.set_rng_state(state)


@pytest.mark.parametrize("accelerator", [OneDevice, TwoDevices])
def test_generators_of_an_accelerator_are_replayed_and_left_as_they_were(monkeypatch, accelerator):
    devices = accelerator()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("xpu"))
    monkeypatch.setattr(torch, "get_device_module", lambda _: devices)
    loss = ReplayedLoss(lambda: torch.rand(1, generator=devices.generator), capture_random_state())
    first = loss()
    drawn = torch.rand(1, generator=devices.generator)
    assert torch.equal(drawn, first)  # the evaluation drew nothing from the generator
    assert torch.equal(loss(), first)


def draw_elsewhere():
    return torch.tensor([random.random(), np.random.rand()])


def test_replayed_loss_draws_the_same_from_numpy_and_python_too():
    loss = ReplayedLoss(draw_elsewhere, capture_random_state())
    first = draw_elsewhere()
    before = random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(loss(), first)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
