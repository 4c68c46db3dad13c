"""The estimators against closed forms, against each other under dropout, and after an error (contracts 3 and 4)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from polynomial import Polynomial, flat, replayed
from torch import Tensor

from peft_bidora.adapter.layer import base_weight, dora_layers, norm_in_graph
from peft_bidora.adapter.parameters import split_levels
from peft_bidora.bilevel.gradients import loss_and_gradient
from peft_bidora.bilevel.hypergradient import (
    BilevelProblem,
    UpperGradient,
    central_difference_hypergradient,
    default_radius,
    direct_gradient,
    exact_hypergradient,
    one_sided_difference_hypergradient,
    value_function_free_gradient,
)
from peft_bidora.bilevel.randomness import ReplayedLoss
from peft_bidora.bilevel.tensors import add_scaled, cosine, norm

XI, RADIUS = 0.7, 1e-4
central = partial(central_difference_hypergradient, radius=RADIUS)
one_sided = partial(one_sided_difference_hypergradient, radius=RADIUS)
IMPLICIT = pytest.mark.parametrize("estimator", [central, one_sided, exact_hypergradient])
ESTIMATORS = [partial(central, xi=XI), partial(one_sided, xi=XI), partial(exact_hypergradient, xi=XI), direct_gradient]
NAMES = ["central", "one_sided", "exact", "direct"]


@IMPLICIT
@pytest.mark.parametrize("xi", [XI, 2.5])
def test_estimators_equal_the_closed_form_where_the_mixed_derivative_is_constant(estimator, xi):
    quadratic = Polynomial()
    gradient = estimator(quadratic.problem(), xi=xi)
    # A difference over 1e-4 magnifies the rounding of 1e-16 to 1e-12; nothing else is lost, ∂L_train/∂M being linear.
    torch.testing.assert_close(flat(gradient.implicit), quadratic.implicit(xi), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(flat(gradient.direct), quadratic.direct(), rtol=1e-12, atol=0)
    torch.testing.assert_close(flat(gradient.total), quadratic.direct() + quadratic.implicit(xi), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradient.upper_loss, quadratic.upper().detach(), rtol=1e-12, atol=0)
    assert [part.shape for part in gradient.total] == [part.shape for part in quadratic.magnitude]


def test_exact_equals_the_closed_form_where_the_mixed_derivative_varies():
    cubic = Polynomial(cubic=1.5)
    gradient = exact_hypergradient(cubic.problem(), xi=XI)
    torch.testing.assert_close(flat(gradient.implicit), cubic.implicit(XI), rtol=1e-12, atol=0)


def test_central_difference_errs_by_the_square_of_its_step():
    cubic = Polynomial(cubic=1.5)
    v, radius = cubic.vector(), 1e-2
    epsilon = radius / v.norm()
    error = flat(central_difference_hypergradient(cubic.problem(), xi=XI, radius=radius).implicit) - cubic.implicit(XI)
    # ((V + εv)³ − (V − εv)³) / 2ε − 3V²v = ε²v³
    expected = -XI * cubic.p.T @ (cubic.a / 3 * epsilon**2 * v**3)
    torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-11)
    gradient = central(cubic.problem(), xi=XI)
    # At the radius 1e-4 that error is at most 1e-8 of the term's size.
    torch.testing.assert_close(flat(gradient.implicit), cubic.implicit(XI), rtol=1e-7, atol=1e-8)


def test_one_sided_difference_errs_by_its_step():
    cubic = Polynomial(cubic=1.5)
    base, v, radius = flat(cubic.direction), cubic.vector(), 1e-2
    epsilon = radius / v.norm()
    error = flat(one_sided_difference_hypergradient(cubic.problem(), xi=XI, radius=radius).implicit) - cubic.implicit(
        XI
    )
    # ((V + εv)³ − V³) / ε − 3V²v = 3εVv² + ε²v³: of first order, where central differences are of second.
    expected = -XI * cubic.p.T @ (cubic.a / 3 * (3 * epsilon * base * v**2 + epsilon**2 * v**3))
    torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-10)


def test_one_sided_difference_uses_the_gradient_that_is_there():
    cubic = Polynomial(cubic=1.5)
    here = torch.autograd.grad(cubic.lower(), cubic.magnitude)
    calls = []
    problem = cubic.problem(lower_magnitude_gradient=here)
    losses = [
        ReplayedLoss(lambda loss=loss: calls.append(1) or loss.loss(), loss.state) for loss in problem.lower_losses
    ]
    given = one_sided(
        BilevelProblem(losses, problem.upper_losses, problem.direction, problem.magnitude, here),
        xi=XI,
    )
    assert len(calls) == len(losses)
    computed = one_sided(cubic.problem(), xi=XI)
    # The two passes sum in another order: 1e-16 magnified by 1e4.
    torch.testing.assert_close(flat(given.implicit), flat(computed.implicit), rtol=1e-9, atol=1e-11)


def test_direct_gradient_is_the_derivative_of_the_upper_loss_alone():
    quadratic = Polynomial()
    gradient = direct_gradient(quadratic.problem())
    torch.testing.assert_close(flat(gradient.direct), quadratic.direct(), rtol=1e-12, atol=0)
    assert all(map(torch.equal, gradient.total, gradient.direct))
    assert not flat(gradient.implicit).any()


@IMPLICIT
def test_implicit_term_follows_the_lower_solution(estimator):
    # L_train = ½(V − M)² has V*(M) = M and a Hessian of 1; L_val = ½V² then falls along −M: h = +V, not −V.
    v, m = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (2.0, 2.0))
    problem = BilevelProblem([replayed(lambda: 0.5 * ((v - m) ** 2).sum())], [lambda: 0.5 * (v**2).sum()], [v], [m])
    # 1e-9: the rounding of 1e-16 magnified by the step of 1e-4.
    torch.testing.assert_close(flat(estimator(problem, xi=1.0).total), v.detach(), rtol=1e-9, atol=0)


@IMPLICIT
def test_xi_scales_the_implicit_term_alone(estimator):
    cubic = Polynomial(cubic=1.5)
    one, three, none = (estimator(cubic.problem(), xi=xi) for xi in (1.0, 3.0, 0.0))
    torch.testing.assert_close(flat(three.implicit), 3 * flat(one.implicit), rtol=1e-12, atol=0)
    assert torch.equal(flat(three.direct), flat(one.direct))
    assert torch.equal(flat(none.total), flat(none.direct))


@IMPLICIT
def test_implicit_term_is_exactly_zero_where_the_upper_loss_ignores_the_direction(estimator):
    quadratic = Polynomial()
    problem = quadratic.problem()
    upper = [lambda: sum((part**2).sum() for part in quadratic.magnitude)]
    gradient = estimator(BilevelProblem(problem.lower_losses, upper, quadratic.direction, quadratic.magnitude), xi=XI)
    assert not flat(gradient.implicit).any()
    assert torch.equal(flat(gradient.total), flat(gradient.direct))


def test_norm_and_cosine_are_those_of_the_parts():
    def vector(*numbers: float) -> tuple[Tensor, ...]:
        return tuple(torch.tensor([number], dtype=torch.float64) for number in numbers)

    gradient = UpperGradient(vector(3.0, 4.0), vector(3.0, 0.0), vector(-2.0, 0.0), torch.tensor(1.0))
    assert gradient.norm().item() == 5.0
    assert gradient.direct_implicit_cosine().item() == -1.0
    none = UpperGradient(vector(3.0, 4.0), vector(3.0, 0.0), vector(0.0, 0.0), torch.tensor(1.0))
    assert none.direct_implicit_cosine().item() == 0.0


def dropped_problem(pair: Callable[[Callable[[], Tensor]], Any]) -> BilevelProblem:
    """A row of units, tanh(m ⊙ V·x), under dropout of a half of x, in float64."""
    torch.manual_seed(5)
    draw = partial(torch.randn, dtype=torch.float64)
    x, target, v, m = draw(6, 5), draw(6, 4), draw(4, 5).requires_grad_(), draw(4).requires_grad_()

    def loss() -> Tensor:
        dropped = torch.nn.functional.dropout(x, 0.5)
        return ((torch.tanh(dropped @ v.T * m) - target) ** 2).mean()

    return BilevelProblem([pair(loss), pair(loss)], [replayed(loss)], [v], [m])


def test_central_difference_equals_the_exact_product_under_dropout():
    found = central(dropped_problem(replayed), xi=XI)
    expected = exact_hypergradient(dropped_problem(replayed), xi=XI)
    # Truncation is of the order 1e-8, with the masks paired.
    torch.testing.assert_close(flat(found.implicit), flat(expected.implicit), rtol=1e-6, atol=1e-8)


def test_one_sided_difference_from_an_earlier_gradient_has_the_masks_of_that_pass():
    problem = dropped_problem(replayed)
    here = loss_and_gradient(problem.lower_losses, problem.magnitude)[1]
    torch.rand(100)
    found = one_sided(replace(problem, lower_magnitude_gradient=here), xi=XI)
    expected = exact_hypergradient(problem, xi=XI)
    # Truncation is of the order of the step, 1e-4; other masks would be divided by it.
    assert norm(add_scaled(found.implicit, expected.implicit, -1.0)) <= 1e-3 * norm(expected.implicit)


def test_unpaired_masks_ruin_the_central_difference():
    torch.manual_seed(0)
    found = central(dropped_problem(lambda loss: loss), xi=XI)
    expected = exact_hypergradient(dropped_problem(replayed), xi=XI)
    # The difference of two draws, over 1e-4, buries the derivative.
    assert norm(found.implicit) > 100 * norm(expected.implicit)


def encoder_problem(model: Any, rows: Any, pair: Callable[[Callable[[], Tensor]], Any], dtype: Any) -> BilevelProblem:
    levels = split_levels(model)

    def loss_of(seed: int) -> Callable[[], Tensor]:
        batch = {key: torch.tensor([row[key] for row in rows(8, seed=seed)]) for key in rows(1)[0]}

        def loss() -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
                return model(**batch).loss.float()

        return loss

    model.train()
    torch.manual_seed(11)
    # Without the head, in which the norm has no part and which would drown the rest.
    direction = [parameter for name, parameter in levels.direction.items() if "lora_" in name]
    return BilevelProblem([pair(loss_of(1))], [replayed(loss_of(2))], direction, list(levels.magnitude.values()))


@pytest.fixture
def encoder(make_adapted, make_rows):
    """A problem on a tiny BERT with dropout 0.1 everywhere."""
    model = make_adapted(dropout=0.1)
    with torch.no_grad():
        # The library's start of 0.02 leaves attention flat, and the term to the head alone.
        for name, parameter in model.named_parameters():
            if name.endswith(("weight", "base_layer.weight")) and "lora" not in name and "LayerNorm" not in name:
                parameter.mul_(10)
        for _, layer, adapter in dora_layers(model):
            low_rank = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
            whole = base_weight(layer) + layer.scaling[adapter] * low_rank
            layer.lora_magnitude_vector[adapter].weight.copy_(whole.norm(dim=1))

    def make(pair: Any = replayed, dtype: Any = torch.float32) -> BilevelProblem:
        return encoder_problem(model, make_rows, pair, dtype)

    return model, make


def test_central_difference_is_faithful_on_an_encoder_with_dropout_in_float32(encoder):
    model, make = encoder
    with norm_in_graph(model):
        found = central_difference_hypergradient(make(), xi=1.0, radius=default_radius(torch.float32))
        expected = exact_hypergradient(make(), xi=1.0)
    assert cosine(found.implicit, expected.implicit) >= 0.999
    # 2 %: the second-order error of a step of 1e-2 in float32.
    assert norm(found.implicit) / norm(expected.implicit) == pytest.approx(1.0, abs=0.02)


def test_central_difference_is_faithful_on_an_encoder_with_dropout_in_bfloat16(encoder):
    model, make = encoder
    with norm_in_graph(model):
        problem = make(dtype=torch.bfloat16)
        found = central_difference_hypergradient(problem, xi=1.0, radius=default_radius(torch.bfloat16))
        expected = exact_hypergradient(problem, xi=1.0)
    assert cosine(found.implicit, expected.implicit) >= 0.99


def test_redrawn_masks_are_far_from_the_exact_product_on_an_encoder(encoder):
    model, make = encoder
    with norm_in_graph(model):
        found = central_difference_hypergradient(make(lambda loss: loss), xi=1.0, radius=default_radius(torch.float32))
        expected = exact_hypergradient(make(), xi=1.0)
    assert cosine(found.implicit, expected.implicit) < 0.5


@IMPLICIT
def test_detached_norm_gives_another_implicit_term(encoder, estimator):
    model, make = encoder
    with norm_in_graph(model):
        whole = estimator(make(), xi=1.0)
    detached = estimator(make(), xi=1.0)
    difference = norm(add_scaled(whole.implicit, detached.implicit, -1.0)) / norm(whole.implicit)
    # 0.14 for the differences and 0.29 for the exact product, which misses the norm in the second derivative too.
    assert difference > 0.1


class Interrupted(Exception):
    """Stands for whatever stops an estimator half-way."""


def raising_problem(level: str, evaluation: int) -> tuple[BilevelProblem, list[int]]:
    """Three micro-batches a level, each drawing random numbers; that level raises at its given evaluation."""
    generator = torch.Generator().manual_seed(0)
    # Of many sizes, so that adding and taking away a step would leave rounding behind.
    sizes = torch.logspace(-6, 3, 12).reshape(4, 3)
    v = (torch.randn(4, 3, generator=generator) * sizes).requires_grad_()
    m = torch.randn(4, generator=generator).requires_grad_()
    calls: list[int] = []

    def loss(of: str) -> Tensor:
        value = (torch.rand(4, 3) * torch.sin(v) * m[:, None]).sum()
        if of == level:
            calls.append(1)
            if len(calls) == evaluation:
                raise Interrupted(f"evaluation {evaluation}")
        return value

    lower = [replayed(partial(loss, "lower")) for _ in range(3)]
    return BilevelProblem(lower, [partial(loss, "upper")] * 3, [v], [m]), calls


def assert_error_leaves_no_trace(estimator: Any, level: str, evaluation: int) -> None:
    torch.manual_seed(1)
    problem, _ = raising_problem(level, evaluation)
    parameters = [*problem.direction, *problem.magnitude]
    before, state = [parameter.detach().clone() for parameter in parameters], torch.get_rng_state()
    with pytest.raises(Interrupted, match=f"evaluation {evaluation}"):
        estimator(problem)
    assert all(map(torch.equal, before, parameters))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("evaluation", [1, 2, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=NAMES)
def test_error_in_the_upper_loss_leaves_parameters_and_generators(estimator, evaluation):
    assert_error_leaves_no_trace(estimator, "upper", evaluation)


@pytest.mark.parametrize("evaluation", [1, 2, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS[:3], ids=NAMES[:3])
def test_error_in_the_lower_loss_leaves_parameters_and_generators(estimator, evaluation):
    assert_error_leaves_no_trace(estimator, "lower", evaluation)


@pytest.mark.parametrize("evaluation", [4, 5, 6])
@pytest.mark.parametrize("estimator", ESTIMATORS[:2], ids=NAMES[:2])
def test_error_in_the_second_lower_pass_leaves_parameters_and_generators(estimator, evaluation):
    assert_error_leaves_no_trace(estimator, "lower", evaluation)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=NAMES)
def test_estimator_moves_no_parameter_and_draws_what_the_upper_loss_draws(estimator):
    torch.manual_seed(1)
    problem, _ = raising_problem("lower", 0)
    parameters = [*problem.direction, *problem.magnitude]
    before, state = [parameter.detach().clone() for parameter in parameters], torch.get_rng_state()
    for loss in problem.upper_losses:
        loss()
    expected = torch.get_rng_state()
    torch.set_rng_state(state)
    estimator(problem)
    assert all(map(torch.equal, before, parameters))
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize(("name", "count"), [("central", 6), ("one_sided", 6), ("exact", 3), ("direct", 0)])
def test_estimator_evaluates_the_lower_loss_as_often_as_its_cost_says(name, count):
    problem, calls = raising_problem("lower", 0)
    ESTIMATORS[NAMES.index(name)](problem)
    assert len(calls) == count


def test_default_radius_grows_as_the_precision_falls():
    radii = [default_radius(dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    assert radii == sorted(radii)
    assert default_radius(torch.float16) == default_radius(torch.bfloat16)


@pytest.mark.parametrize("penalty", [2.0, 50.0])
def test_lower_level_of_the_value_function_free_gradient_ends_at_the_penalised_minimum(penalty):
    quadratic = Polynomial()
    target = quadratic.p @ flat(quadratic.magnitude)
    # The minimum of ½ c (V − P·M)² + ½ (V − t)² / penalty, entry by entry.
    expected = (quadratic.c * target + quadratic.t / penalty) / (quadratic.c + 1 / penalty)
    for _ in range(400):
        gradient = value_function_free_gradient(quadratic.problem(), penalty=penalty)
        of_lower = torch.autograd.grad(quadratic.lower(), quadratic.direction)
        with torch.no_grad():
            for part, one, other in zip(quadratic.direction, of_lower, gradient.lower, strict=True):
                part.sub_(0.2 * (one + other))
    torch.testing.assert_close(flat(quadratic.direction), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flat(gradient.total), quadratic.direct())
