"""Estimators of the hypergradient of the upper level, each named for what it computes.

    h = ∂L_val/∂M − ξ · (∂²L_train / ∂M∂V) · v,    v = ∂L_val/∂V

the total derivative of L_val(V*(M), M) with the inverse Hessian of the lower level replaced by ξ · identity, or by
ξ times the response of the lower optimiser where the problem has one (`bilevel.response`): it is then applied to v.

Of lanes, problems that are solved side by side, each parameter has the lane axis in front and each loss is (lanes,): v,
ε and ξ are then those of each lane.

Of one problem on many processes each has a part of the rows of both batches. Every gradient is reduced before it is
used, so that v, ε and h are the same on all of them to the bit; the perturbed passes reduce ∂L_train/∂M alone.

References: Qin, Zhang, Xie, arXiv:2410.09758; Liu et al. (DARTS), arXiv:1806.09055; Lorraine et al., arXiv:1911.02590.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_bidora.bilevel.gradients import Loss, Reduction, alone, loss_and_gradient, mixed_product
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state, set_random_state
from peft_bidora.bilevel.response import Response
from peft_bidora.bilevel.tensors import add_scaled, cosine, norm, scaled


@dataclass(frozen=True)
class BilevelProblem:
    """One batch of each level, at the present parameters.

    Args:
        lower_losses: L_train, one closure a micro-batch; each replays its own dropout masks.
        upper_losses: L_val, one closure a micro-batch; they draw from the generators as any pass does.
        direction: V, the parameters of the lower level.
        magnitude: M, the parameters of the upper level.
        lower_magnitude_gradient: ∂L_train/∂M at the present V with the masks of `lower_losses`, where a training
            pass already gave it; not yet reduced.
        response: of the lower level's optimiser, see `bilevel.response`; None for the identity.
        lanes: whether these are several problems, side by side.
        reduction: of what this process computes of its own rows, over all processes; see `bilevel.gradients`.
    """

    lower_losses: Sequence[ReplayedLoss]
    upper_losses: Sequence[Loss]
    direction: Sequence[Tensor]
    magnitude: Sequence[Tensor]
    lower_magnitude_gradient: Sequence[Tensor] | None = None
    response: Response | None = None
    lanes: bool = False
    reduction: Reduction = alone


@dataclass(frozen=True)
class UpperGradient:
    """What the upper level descends along, with its two parts.

    Args:
        total: direct − ξ · mixed product; one tensor of the shape of each magnitude.
        direct: ∂L_val/∂M.
        implicit: − ξ · mixed product; zeros where an estimator has no implicit term.
        upper_loss: L_val, a detached scalar or (lanes,), mean nats a label.
        lower: what the estimator adds to the gradient of the lower loss, of the shapes of the direction; None for
            nothing.
    """

    total: tuple[Tensor, ...]
    direct: tuple[Tensor, ...]
    implicit: tuple[Tensor, ...]
    upper_loss: Tensor
    lower: tuple[Tensor, ...] | None = None

    def norm(self) -> Tensor:
        """Return ‖h‖, a scalar tensor or (lanes,)."""
        return norm(self.total, lanes=self.upper_loss.ndim > 0)

    def direct_implicit_cosine(self) -> Tensor:
        """Return the cosine of the angle between the two parts, a scalar tensor or (lanes,); 0 if either is zero."""
        return cosine(self.direct, self.implicit, lanes=self.upper_loss.ndim > 0)

    def of_lane(self, lane: int) -> "UpperGradient":
        """Return the gradient of one lane, as views."""
        total, direct, implicit = (
            tuple(each[lane] for each in part) for part in (self.total, self.direct, self.implicit)
        )
        lower = None if self.lower is None else tuple(each[lane] for each in self.lower)
        return UpperGradient(total, direct, implicit, self.upper_loss[lane], lower)


Estimator = Callable[[BilevelProblem], UpperGradient]
Scalar = float | Tensor  # (lanes,) where each lane has its own


def central_difference_hypergradient(problem: BilevelProblem, *, xi: Scalar, radius: Scalar) -> UpperGradient:
    """Return the hypergradient with the mixed product by central differences (the paper's).

    (∂²L_train/∂M∂V) · v ≈ [∂L_train/∂M(V + εv) − ∂L_train/∂M(V − εv)] / 2ε,  ε = radius / ‖v‖

    Costs three passes: one of the upper and two of the lower loss. The direction is put back bit for bit and the
    generators are put back if anything raises.

    Args:
        problem: the batches and parameters of both levels.
        xi: ξ, in the unit of a lower learning rate.
        radius: the length of the perturbation of V; see `default_radius`.
    """
    with _generators_restored_on_error():
        upper_loss, vector, direct = _upper_pass(problem)
        epsilon = _step_size(vector, radius, problem.lanes)
        above = _magnitude_gradient_at(problem, vector, epsilon)
        below = _magnitude_gradient_at(problem, vector, -epsilon)
        return _assemble(upper_loss, direct, add_scaled(above, below, -1.0), -xi / (2 * epsilon))


def one_sided_difference_hypergradient(problem: BilevelProblem, *, xi: Scalar, radius: Scalar) -> UpperGradient:
    """Return the hypergradient with the mixed product by a one-sided difference.

    (∂²L_train/∂M∂V) · v ≈ [∂L_train/∂M(V + εv) − ∂L_train/∂M(V)] / ε,  ε = radius / ‖v‖

    Costs two passes if `problem.lower_magnitude_gradient` is there, else three. Args as in
    `central_difference_hypergradient`.
    """
    with _generators_restored_on_error():
        upper_loss, vector, direct = _upper_pass(problem)
        epsilon = _step_size(vector, radius, problem.lanes)
        above = _magnitude_gradient_at(problem, vector, epsilon)
        taken = problem.lower_magnitude_gradient
        if taken is None:
            here = loss_and_gradient(problem.lower_losses, problem.magnitude, problem.reduction)[1]
        else:
            here = problem.reduction(taken)
        return _assemble(upper_loss, direct, add_scaled(above, here, -1.0), -xi / epsilon)


def exact_hypergradient(problem: BilevelProblem, *, xi: Scalar) -> UpperGradient:
    """Return the hypergradient with the exact mixed product, by differentiating the lower loss twice.

    The model must be twice differentiable: attention has to be "eager", since the fused kernels have no second
    derivative.

    Args:
        problem: the batches and parameters of both levels.
        xi: ξ, in the unit of a lower learning rate.
    """
    with _generators_restored_on_error():
        upper_loss, vector, direct = _upper_pass(problem)
        product = mixed_product(problem.lower_losses, problem.magnitude, problem.direction, vector, problem.reduction)
        return _assemble(upper_loss, direct, product, -xi)


def direct_gradient(problem: BilevelProblem) -> UpperGradient:
    """Return ∂L_val/∂M alone: first order, ξ = 0. It is not the hypergradient: V is taken not to follow M."""
    with _generators_restored_on_error():
        upper_loss, direct = loss_and_gradient(problem.upper_losses, problem.magnitude, problem.reduction)
        return UpperGradient(direct, direct, tuple(torch.zeros_like(part) for part in direct), upper_loss)


def value_function_free_gradient(problem: BilevelProblem, *, penalty: Scalar) -> UpperGradient:
    """Return ∂L_val/∂M alone, and ∂L_val/∂V / penalty for the lower level to descend along too.

    So V follows argmin L_train + L_val / penalty, which moves with M as the lower level's solution does, and nothing is
    differenced; what is left out is negligible where L_val is flat around that solution. V sees the upper rows.

    Costs one pass. Reference: Jiang et al. (PBGD-Free), arXiv:2507.20400.

    Args:
        problem: the batches and parameters of both levels; the lower losses are not evaluated.
        penalty: γ, the weight of the lower loss; the larger, the less V follows L_val.
    """
    with _generators_restored_on_error():
        upper_loss, of_direction, direct = _upper_gradients(problem)
        lower = scaled(of_direction, 1 / penalty)
        return UpperGradient(direct, direct, tuple(torch.zeros_like(part) for part in direct), upper_loss, lower)


def default_radius(dtype: torch.dtype) -> float:
    """Return the length of the perturbation for the precision of the passes.

    Measured against the exact product on a six-layer encoder with dropout 0.1 (benchmarks/fidelity.py): a shorter
    step drowns in the rounding of bfloat16, a longer one leaves the linear range.
    """
    return {torch.float64: 1e-4, torch.float32: 1e-2}.get(dtype, 1e-1)


def _upper_pass(problem: BilevelProblem) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return L_val, v and ∂L_val/∂M."""
    upper_loss, vector, direct = _upper_gradients(problem)
    if problem.response is not None:
        vector = problem.response(vector)
    return upper_loss, vector, direct


def _upper_gradients(problem: BilevelProblem) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return L_val, ∂L_val/∂V and ∂L_val/∂M."""
    count = len(problem.direction)
    parameters = (*problem.direction, *problem.magnitude)
    upper_loss, gradient = loss_and_gradient(problem.upper_losses, parameters, problem.reduction)
    return upper_loss, gradient[:count], gradient[count:]


def _step_size(vector: Sequence[Tensor], radius: Scalar, lanes: bool) -> Tensor:
    """Return ε; v = 0 gives a huge ε times nothing, so the difference is exactly zero."""
    length = norm(vector, lanes=lanes)
    return radius / length.clamp_min(torch.finfo(length.dtype).tiny ** 0.5)


def _magnitude_gradient_at(problem: BilevelProblem, vector: Sequence[Tensor], epsilon: Tensor) -> tuple[Tensor, ...]:
    """Return ∂L_train/∂M at V + epsilon · vector."""
    with _moved(problem.direction, vector, epsilon):
        return loss_and_gradient(problem.lower_losses, problem.magnitude, problem.reduction)[1]


def _assemble(
    upper_loss: Tensor, direct: tuple[Tensor, ...], product: Sequence[Tensor], scale: Scalar
) -> UpperGradient:
    implicit = scaled(product, scale)
    return UpperGradient(add_scaled(direct, implicit, 1.0), direct, implicit, upper_loss)


@contextmanager
def _moved(parameters: Sequence[Tensor], vector: Sequence[Tensor], scale: Tensor) -> Iterator[None]:
    """Add scale · vector for the time of the block; the saved values are copied back, so no rounding remains.

    The parameters have no gradient there, so that a pass keeps nothing for one.
    """
    saved = [(parameter.detach().clone(), parameter.requires_grad) for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, step in zip(parameters, scaled(vector, scale), strict=True):
                parameter.requires_grad_(False).add_(step)
        yield
    finally:
        with torch.no_grad():
            for parameter, (value, had_gradient) in zip(parameters, saved, strict=True):
                parameter.copy_(value).requires_grad_(had_gradient)


@contextmanager
def _generators_restored_on_error() -> Iterator[None]:
    state = capture_random_state()
    try:
        yield
    except BaseException:
        set_random_state(state)
        raise
