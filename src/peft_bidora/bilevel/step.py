"""The upper step: one update of the magnitudes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_bidora.bilevel.hypergradient import BilevelProblem, Estimator, UpperGradient
from peft_bidora.errors import NonFiniteError


def upper_step(
    estimator: Estimator, problem: BilevelProblem, optimizer: torch.optim.Optimizer, *, max_norm: float, step: int
) -> UpperGradient:
    """Move the magnitudes against the estimated gradient of the upper level; the direction stays.

    Args:
        estimator: one of `bilevel.hypergradient`, its options bound.
        problem: one batch of each level.
        optimizer: of `problem.magnitude` alone.
        max_norm: the gradient is scaled down to this Euclidean norm; 0 leaves it as it is.
        step: the number of this step, for the message of an error.

    Raises:
        NonFiniteError: the gradient or the upper loss is not finite; nothing has been changed.
    """
    gradient = estimator(problem)
    descend(problem.magnitude, gradient, optimizer, max_norm=max_norm, step=step)
    return gradient


def descend(
    magnitude: Sequence[Tensor],
    gradient: UpperGradient,
    optimizer: torch.optim.Optimizer,
    *,
    max_norm: float,
    step: int,
) -> None:
    """Move the magnitudes against a gradient of the upper level; args and error as in `upper_step`."""
    length = gradient.norm()
    if not bool(torch.isfinite(length) & torch.isfinite(gradient.upper_loss)):
        raise NonFiniteError(
            f"search step {step}: the upper loss is {gradient.upper_loss.item():.4g} and the norm of the hypergradient"
            f" {length.item():.4g}; both must be finite. The parameters are unchanged. Lower the learning rates of"
            " the search, lower xi, set max_grad_norm, or train in float32."
        )
    scale = (max_norm / (length + 1e-6)).clamp(max=1.0) if max_norm > 0 else None
    for parameter, part in zip(magnitude, gradient.total, strict=True):
        parameter.grad = part if scale is None else part * scale
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
