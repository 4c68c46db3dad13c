"""How straight the way of parameters is, against ways of a known shape."""

import math

import pytest
import torch

from peft_bidora.bilevel.settling import Straightness


def walk(steps: list[torch.Tensor], window: int = 4) -> list[float | None]:
    parameter = torch.zeros_like(steps[0])
    straightness = Straightness([parameter], window)
    told = []
    for step in steps:
        parameter += step
        told.append(straightness.add_step())
    return told


def test_a_line_is_straight_and_a_way_back_is_not() -> None:
    one = torch.ones(3, dtype=torch.float64)
    assert walk([one] * 4) == [None, None, None, pytest.approx(1.0, rel=1e-12)]
    assert walk([one, one, -one, -one])[3] == pytest.approx(0.0, abs=1e-12)
    assert walk([2 * one, one, one, -2 * one])[3] == pytest.approx(2 / 6, rel=1e-12)


def test_each_window_starts_anew() -> None:
    one = torch.ones(3, dtype=torch.float64)
    assert walk([one, -one, one, -one, one, one, one, one])[7] == pytest.approx(1.0, rel=1e-12)


def test_steps_in_directions_of_their_own_have_the_root_of_the_window() -> None:
    steps = list(torch.eye(16, dtype=torch.float64))
    assert walk(steps, 16)[15] == pytest.approx(1 / math.sqrt(16), rel=1e-12)


def test_no_step_at_all_is_not_straight() -> None:
    assert walk([torch.zeros(2, dtype=torch.float64)] * 4)[3] == 0.0


def test_all_parameters_are_one_vector() -> None:
    parameters = [torch.zeros(1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    straightness = Straightness(parameters, 2)
    parameters[0] += 3
    straightness.add_step()
    parameters[1][0] += 4
    assert straightness.add_step() == pytest.approx(5 / 7, rel=1e-12)


@pytest.mark.parametrize("at", range(8))
def test_way_goes_on_from_its_state(at: int) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(8)]
    parameter = torch.zeros(5, dtype=torch.float64)
    straightness = Straightness([parameter], 4)
    told = []
    for number, step in enumerate(steps):
        if number == at:
            state = straightness.state_dict()
            parameter = parameter.clone()
            straightness = Straightness([parameter], 4)
            straightness.load_state_dict(state)
        parameter += step
        told.append(straightness.add_step())
    assert told == walk(steps)
