"""How the lower level's optimiser answers a change of its gradient.

    V' = V − u(κ·g),   κ = min(1, most / (‖g‖ + δ)), what clipping leaves of g,   u = lr · (m/c₁) / (√(s/c₂) + ϵ)

    m = β₁·m₋ + (1 − β₁)·κg,   s = β₂·s₋ + (1 − β₂)·(κg)²,   c₁ = 1 − β₁ᵗ,   c₂ = 1 − β₂ᵗ
    D = ∂u/∂(κg) = lr · [(1 − β₁)/c₁ − (m/c₁)·(1 − β₂)·κg / (c₂·√(s/c₂)·(√(s/c₂) + ϵ))] / (√(s/c₂) + ϵ),  diagonal
    ∂(κg)/∂g = κ · (I − g·gᵀ / (‖g‖·(‖g‖ + δ))) where the gradient is clipped, else I

With (∂u/∂g)ᵀ·v in place of ξ · v the hypergradient is that of one step of Adam, unrolled; a decay of V does not depend
on g. Reference: Choe et al. (SAMA), arXiv:2310.05674, who leave the clipping out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from peft_bidora.bilevel.tensors import add_scaled, dot, norm, scaled

Response = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]  # v -> (∂u/∂g)ᵀ·v
CLIPPED_BY = 1e-6  # δ of torch's clip_grad_norm_


@torch.no_grad()
def adam_response(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    max_norm: float = 0.0,
) -> Response:
    """Return v -> (∂u/∂g)ᵀ·v of the step that Adam or AdamW would take next; the state is left as it is.

    Args:
        optimizer: torch's Adam or AdamW, without amsgrad.
        parameters: of the optimiser.
        gradients: g, one of the shape of each parameter, before it is clipped.
        max_norm: what the norm of g is clipped to; 0 for no clipping.
    """
    length = norm(gradients)
    kept = (max_norm / (length + CLIPPED_BY)).clamp(max=1.0) if max_norm > 0 else torch.ones_like(length)
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    states = [optimizer.state.get(parameter) or {} for parameter in parameters]
    # The counters may lie on the device: they are read at once.
    counted = [state["step"] for state in states if state]
    steps = iter(torch.stack(counted).tolist() if counted else [])
    diagonal = [
        _diagonal(group_of[id(parameter)], state, next(steps) if state else 0.0, part)
        for parameter, state, part in zip(parameters, states, scaled(gradients, kept), strict=True)
    ]

    def response(vector: Sequence[Tensor]) -> tuple[Tensor, ...]:
        answered = tuple(scale * part for scale, part in zip(diagonal, vector, strict=True))
        along = dot(gradients, answered) / (length * (length + CLIPPED_BY)).clamp_min(torch.finfo(length.dtype).tiny)
        return scaled(add_scaled(answered, gradients, torch.where(kept < 1, -along, 0.0)), kept)

    return response


def _diagonal(group: dict[str, Any], state: dict[str, Tensor], steps: float, gradient: Tensor) -> Tensor:
    """Return D at a clipped gradient."""
    beta1, beta2 = group["betas"]
    correction1, correction2 = 1 - beta1 ** (steps + 1), 1 - beta2 ** (steps + 1)
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
