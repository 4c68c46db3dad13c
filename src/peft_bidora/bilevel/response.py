"""How the lower level's optimiser answers a change of its gradient.

    V' = V − u(g),   D = ∂u/∂g, diagonal for Adam:

    m = β₁·m₋ + (1 − β₁)·g,   s = β₂·s₋ + (1 − β₂)·g²,   c₁ = 1 − β₁ᵗ,   c₂ = 1 − β₂ᵗ,   u = lr · (m/c₁) / (√(s/c₂) + ϵ)
    D = lr · [(1 − β₁)/c₁ − (m/c₁)·(1 − β₂)·g / (c₂·√(s/c₂)·(√(s/c₂) + ϵ))] / (√(s/c₂) + ϵ)

With D in place of ξ · identity the hypergradient is that of one step of Adam, unrolled; a decay of V does not depend on
g. Reference: Choe et al. (SAMA), arXiv:2310.05674.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def adam_response(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the diagonal of D of the step that Adam or AdamW would take next; the state is left as it is.

    Args:
        optimizer: torch's Adam or AdamW, without amsgrad.
        parameters: of the optimiser.
        gradients: g, one of the shape of each parameter.

    Returns:
        one tensor of the shape of each parameter, in the unit of a learning rate.
    """
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return tuple(
        _response(group_of[id(parameter)], optimizer.state.get(parameter) or {}, gradient)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    )


def _response(group: dict[str, Any], state: dict[str, Tensor], gradient: Tensor) -> Tensor:
    beta1, beta2 = group["betas"]
    steps = float(state["step"]) + 1 if state else 1.0
    correction1, correction2 = 1 - beta1**steps, 1 - beta2**steps
    mean, square = (1 - beta1) * gradient, (1 - beta2) * gradient.square()
    if state:
        mean, square = mean + beta1 * state["exp_avg"], square + beta2 * state["exp_avg_sq"]
    root = (square / correction2).sqrt()
    length = root + group["eps"]
    # Where no gradient has ever been, both terms of the quotient are zero.
    bend = mean / correction1 * (1 - beta2) * gradient / (correction2 * root * length)
    slope = (1 - beta1) / correction1 - torch.where(root > 0, bend, 0.0)
    answer: Tensor = group["lr"] * slope / length
    return answer
