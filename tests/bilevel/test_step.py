"""The upper step, and the whole loop on a problem whose bi-level solution is known."""

from functools import partial

import pytest
import torch

from peft_bidora.bilevel.hypergradient import (
    BilevelProblem,
    UpperGradient,
    central_difference_hypergradient,
    direct_gradient,
    exact_hypergradient,
    one_sided_difference_hypergradient,
)
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state
from peft_bidora.bilevel.step import upper_step
from peft_bidora.errors import NonFiniteError


class CountedSGD(torch.optim.SGD):
    calls = 0

    def step(self, closure=None):
        self.calls += 1
        return super().step(closure)


def make(gradient=(3.0, 4.0), loss=1.0):
    """Two magnitudes of zero, and an estimator that returns the given gradient."""
    magnitude = [torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)]
    parts = tuple(torch.tensor([value]) for value in gradient)
    problem = BilevelProblem([], [], [], magnitude)
    return lambda _: UpperGradient(parts, parts, parts, torch.tensor(loss)), problem, CountedSGD(magnitude, lr=1.0)


@pytest.mark.parametrize(
    ("gradient", "loss", "shown"),
    [
        ((float("nan"), 1.0), 1.0, "loss is 1 and the norm of the hypergradient nan"),
        ((1.0, float("inf")), 1.0, "loss is 1 and the norm of the hypergradient inf"),
        ((3.0, 4.0), float("nan"), "loss is nan and the norm of the hypergradient 5"),
    ],
)
def test_gradient_that_is_not_finite_is_an_error_and_moves_nothing(gradient, loss, shown):
    estimator, problem, optimizer = make(gradient, loss)
    with pytest.raises(NonFiniteError, match=f"search step 17: the upper {shown}"):
        upper_step(estimator, problem, optimizer, max_norm=1.0, step=17)
    assert all(torch.equal(part, torch.zeros(1)) for part in problem.magnitude)
    assert all(part.grad is None for part in problem.magnitude)
    assert optimizer.calls == 0


@pytest.mark.parametrize(
    ("max_norm", "moved"), [(0.0, (-3.0, -4.0)), (10.0, (-3.0, -4.0)), (1.0, (-0.6, -0.8)), (2.5, (-1.5, -2.0))]
)
def test_gradient_is_scaled_down_to_max_norm(max_norm, moved):
    estimator, problem, optimizer = make()
    gradient = upper_step(estimator, problem, optimizer, max_norm=max_norm, step=1)
    # 1e-6: what keeps the division finite, and float32.
    assert [part.item() for part in problem.magnitude] == pytest.approx(moved, rel=1e-6)
    assert gradient.norm().item() == 5.0


def test_zero_gradient_moves_nothing():
    estimator, problem, optimizer = make((0.0, 0.0))
    upper_step(estimator, problem, optimizer, max_norm=1.0, step=1)
    assert all(torch.equal(part, torch.zeros(1)) for part in problem.magnitude)


def test_optimizer_is_called_once_and_gradients_are_cleared():
    estimator, problem, optimizer = make()
    upper_step(estimator, problem, optimizer, max_norm=0.0, step=1)
    assert optimizer.calls == 1
    assert all(part.grad is None for part in problem.magnitude)


def search(estimator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L_train = ½‖V − P·M − b‖² has V*(M) = P·M + b and the Hessian 1; L_val = ½‖V − t‖² + ½k‖M − u‖².

    The bi-level solution solves (PᵀP + k)M = Pᵀ(t − b) + k·u; descent along ∂L_val/∂M alone ends at u.
    """
    generator = torch.Generator().manual_seed(4)
    p, b, t, u = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (5,), (5,), (3,)))
    k = 0.5
    v, m = (torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in (5, 3))
    solution = torch.linalg.solve(p.T @ p + k * torch.eye(3, dtype=torch.float64), p.T @ (t - b) + k * u)

    def lower():
        return 0.5 * ((v - p @ m - b) ** 2).sum()

    def upper():
        return 0.5 * ((v - t) ** 2).sum() + 0.5 * k * ((m - u) ** 2).sum()

    lower_optimizer, upper_optimizer = torch.optim.SGD([v], lr=0.5), torch.optim.SGD([m], lr=0.1)
    problem = BilevelProblem([ReplayedLoss(lower, capture_random_state())], [upper], [v], [m])
    for step in range(300):
        for _ in range(4):
            lower_optimizer.zero_grad()
            (v.grad,) = torch.autograd.grad(lower(), v)
            lower_optimizer.step()
        upper_step(estimator, problem, upper_optimizer, max_norm=0.0, step=step)
    return m.detach(), solution, u


@pytest.mark.parametrize(
    "estimator",
    [
        partial(exact_hypergradient, xi=1.0),
        partial(central_difference_hypergradient, xi=1.0, radius=1e-4),
        partial(one_sided_difference_hypergradient, xi=1.0, radius=1e-4),
    ],
    ids=["exact", "central", "one_sided"],
)
def test_loop_converges_to_the_bilevel_solution(estimator):
    found, solution, _ = search(estimator)
    # 300 steps at a rate below 0.95 leave 1e-7 of the start.
    torch.testing.assert_close(found, solution, rtol=1e-6, atol=1e-6)


def test_direct_gradient_converges_elsewhere():
    found, solution, elsewhere = search(direct_gradient)
    torch.testing.assert_close(found, elsewhere, rtol=1e-6, atol=1e-6)
    assert (found - solution).norm() > 0.1
