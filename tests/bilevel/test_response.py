"""Adam's response, against differences of torch's own step, and the hypergradient of that step unrolled."""

import copy
from functools import partial

import pytest
import torch
from polynomial import Polynomial
from torch import Tensor

from peft_bidora.bilevel.hypergradient import (
    central_difference_hypergradient,
    exact_hypergradient,
    one_sided_difference_hypergradient,
)
from peft_bidora.bilevel.response import adam_response

# Of gradients whose norms are from 1 to 4: none, one that is not reached, two that are.
clippings = pytest.mark.parametrize("max_norm", [0.0, 100.0, 0.9, 0.1])
OPTIONS = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3}


def trained(parameters: list[Tensor], optimizer: type[torch.optim.Optimizer], steps: int) -> torch.optim.Optimizer:
    """Return an optimiser that has taken some steps along gradients that change."""
    made = optimizer(parameters, **OPTIONS, weight_decay=0.0)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        made.step()
    return made


def moved(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], gradients: list[Tensor], max_norm: float
) -> Tensor:
    """Return V − u(κ·g) after the optimiser's own step, all parameters in one, and leave them as they were."""
    saved, state = [parameter.detach().clone() for parameter in parameters], copy.deepcopy(optimizer.state_dict())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    if max_norm > 0:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    after = torch.cat([parameter.detach().flatten() for parameter in parameters])
    with torch.no_grad():
        for parameter, value in zip(parameters, saved, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state)
    return after


@clippings
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_response_is_the_derivative_of_the_step(
    optimizer: type[torch.optim.Optimizer], steps: int, max_norm: float
) -> None:
    parameters = [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    made = trained(parameters, optimizer, steps)
    gradients = [torch.linspace(-1, 2, 6, dtype=torch.float64).view(2, 3), torch.tensor([0.3, -0.7]).double()]
    before = copy.deepcopy(made.state_dict()["state"])
    response = adam_response(made, parameters, gradients, max_norm=max_norm)
    vector = torch.linspace(1, -2, 8, dtype=torch.float64)
    found = torch.cat([part.flatten() for part in response(split(vector))])
    assert str(made.state_dict()["state"]) == str(before)
    step, expected = 1e-6, torch.zeros(8, dtype=torch.float64)
    for index in range(8):
        change = split(step * torch.eye(8, dtype=torch.float64)[index])
        ends = [
            moved(made, parameters, [g + sign * d for g, d in zip(gradients, change, strict=True)], max_norm) @ vector
            for sign in (1, -1)
        ]
        expected[index] = -(ends[0] - ends[1]) / (2 * step)
    # A central difference over 1e-6 in float64: 1e-9 of rounding.
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def split(vector: Tensor) -> list[Tensor]:
    return [vector[:6].view(2, 3), vector[6:]]


@clippings
def test_response_where_no_gradient_has_been_is_finite(max_norm: float) -> None:
    parameter = torch.zeros(3, dtype=torch.float64)
    optimizer = torch.optim.AdamW([parameter], **OPTIONS)
    response = adam_response(optimizer, [parameter], [torch.zeros_like(parameter)], max_norm=max_norm)
    (found,) = response([torch.ones_like(parameter)])
    torch.testing.assert_close(found, torch.full_like(parameter, OPTIONS["lr"] / OPTIONS["eps"]))


@clippings
@pytest.mark.parametrize(
    "estimator",
    [
        partial(central_difference_hypergradient, radius=1e-4),
        partial(one_sided_difference_hypergradient, radius=1e-6),
        exact_hypergradient,
    ],
)
def test_hypergradient_is_that_of_one_step_unrolled(estimator: partial, max_norm: float) -> None:
    quadratic = Polynomial()
    optimizer = trained(quadratic.direction, torch.optim.AdamW, 4)
    magnitude = [part.detach().clone() for part in quadratic.magnitude]

    def lower_gradients() -> list[Tensor]:
        return list(torch.autograd.grad(quadratic.lower(), quadratic.direction))

    response = adam_response(optimizer, quadratic.direction, lower_gradients(), max_norm=max_norm)
    found = estimator(quadratic.problem(response=response), xi=1.0).implicit
    upper_gradient = torch.cat([part.flatten() for part in quadratic.vector().split([6, 2])])
    # d/dM of v·V'(M), an entry of M at a time.
    step, expected = 1e-6, []
    for part, original in zip(quadratic.magnitude, magnitude, strict=True):
        slopes = torch.zeros_like(original)
        for index in range(len(original)):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    part.copy_(original)
                    part[index] += sign * step
                ends.append(moved(optimizer, quadratic.direction, lower_gradients(), max_norm) @ upper_gradient)
            slopes[index] = (ends[0] - ends[1]) / (2 * step)
            with torch.no_grad():
                part.copy_(original)
        expected.append(slopes)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
