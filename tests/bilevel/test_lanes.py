"""Problems side by side give, each, what they give alone."""

from functools import partial

import pytest
import torch

from peft_bidora.bilevel.hypergradient import (
    BilevelProblem,
    central_difference_hypergradient,
    direct_gradient,
    exact_hypergradient,
    one_sided_difference_hypergradient,
    value_function_free_gradient,
)
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state
from peft_bidora.bilevel.tensors import add_scaled, cosine, dot, norm, scaled

LANES = 3
XI, RADIUS, PENALTY = (
    torch.tensor(each, dtype=torch.float64) for each in ([0.5, 1.0, 2.0], [1e-4, 2e-4, 3e-4], [2.0, 3.0, 5.0])
)
ESTIMATORS = {
    "central": (central_difference_hypergradient, {"xi": XI, "radius": RADIUS}),
    "one-sided": (one_sided_difference_hypergradient, {"xi": XI, "radius": RADIUS}),
    "exact": (exact_hypergradient, {"xi": XI}),
    "first-order": (direct_gradient, {}),
    "pbgd-free": (value_function_free_gradient, {"penalty": PENALTY}),
}


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, B, M = draw(LANES, 4, 3, seed=1), draw(LANES, 5, seed=2), draw(LANES, 4, seed=3)
DIAGONAL = (W.square() + 0.1, B.square() + 0.1)


def respond(diagonal):
    return lambda vector: tuple(scale * part for scale, part in zip(diagonal, vector, strict=True))


def problem(lane=None, response=None):
    """A problem whose losses couple M and V beyond the second order; of one lane, or of all."""
    v = [each.clone().requires_grad_() for each in (W, B)]
    m = M.clone().requires_grad_()
    if lane is not None:
        v, m = [each.detach()[lane].requires_grad_() for each in v], m.detach()[lane].requires_grad_()

    def loss(scale):
        w, b = v
        values = (m * w.sin().sum(-1)).square() * scale
        coupled = values.sum(-1) + (m.exp().sum(-1) * b.square().mean(-1)) * scale
        return coupled + w.square().sum((-1, -2))

    return BilevelProblem(
        lower_losses=[ReplayedLoss(partial(loss, scale), capture_random_state()) for scale in (0.5, 1.5)],
        upper_losses=[partial(loss, 0.7)],
        direction=v,
        magnitude=[m],
        response=response,
        lanes=lane is None,
    )


def of_lane(options, lane):
    return {name: value[lane].item() for name, value in options.items()}


@pytest.mark.parametrize("diagonal", [None, DIAGONAL], ids=["identity", "response"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_lane_has_the_gradient_of_its_problem_alone(name, diagonal):
    estimate, options = ESTIMATORS[name]
    found = estimate(problem(response=diagonal and respond(diagonal)), **options)
    for lane in range(LANES):
        alone = diagonal and respond([each[lane] for each in diagonal])
        expected = estimate(problem(lane, response=alone), **of_lane(options, lane))
        one = found.of_lane(lane)
        # 1e-7: a difference quotient of float64 carries the rounding of the losses over a step of 1e-4.
        for part in ("total", "direct", "implicit"):
            torch.testing.assert_close(getattr(one, part), getattr(expected, part), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(one.upper_loss, expected.upper_loss)
        assert (one.lower is None) == (expected.lower is None)
        for left, right in zip(one.lower or (), expected.lower or (), strict=True):
            torch.testing.assert_close(left, right)
        torch.testing.assert_close(found.norm()[lane], expected.norm(), rtol=1e-7, atol=0)
        torch.testing.assert_close(found.direct_implicit_cosine()[lane], expected.direct_implicit_cosine())


def test_perturbation_of_a_lane_is_put_back_bit_for_bit():
    posed = problem()
    before = [each.detach().clone() for each in posed.direction]
    central_difference_hypergradient(posed, xi=XI, radius=RADIUS)
    assert all(torch.equal(one, other) for one, other in zip(before, posed.direction, strict=True))


def test_algebra_of_lanes_is_that_of_each():
    left, right = [W, B], [W.cos(), B.cos()]
    scale = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for lane in range(LANES):
        a, b = [each[lane] for each in left], [each[lane] for each in right]
        torch.testing.assert_close(dot(left, right, lanes=True)[lane], dot(a, b))
        torch.testing.assert_close(norm(left, lanes=True)[lane], norm(a))
        torch.testing.assert_close(cosine(left, right, lanes=True)[lane], cosine(a, b))
        for found, expected in (
            (scaled(left, scale), scaled(a, scale[lane])),
            (add_scaled(left, right, scale), add_scaled(a, b, scale[lane])),
        ):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one[lane], other)
