"""The orthogonality regulariser of the direction, with a gradient in closed form.

    R(V) = mean over layers of ‖D·Dᵀ − I‖_F,   D = V / n,   so that   ‖D·Dᵀ − I‖² = ‖D·Dᵀ‖² − out

    G = V·Vᵀ = W0·W0ᵀ + U·Bᵀ + B·Uᵀ,   U = s·W0·Aᵀ + ½s²·B·(A·Aᵀ)          out²·r once W0·W0ᵀ is known
    ∂½‖D·Dᵀ‖²/∂V = 2·H·V,   H = C ⊘ (n nᵀ) − diag(rowsum(C²) / n²),   C = D·Dᵀ = G ⊘ (n nᵀ)

W0·W0ᵀ is kept for each adapted layer: out² numbers.
Reference: Qin, Zhang, Xie, arXiv:2410.09758, the Gram regulariser.
"""

from typing import Any

import torch
from torch import Tensor, nn

from peft_bidora.adapter.layer import base_weight, dora_layers


class OrthogonalityRegularizer:
    """R(V) of a model's DoRA layers; holds W0·W0ᵀ of each.

    Args:
        model: the PEFT model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [(module, adapter, _gram(module)) for _, module, adapter in dora_layers(model)]

    @torch.no_grad()
    def add_gradient(self, weight: float) -> Tensor:
        """Add weight · ∂R/∂A and weight · ∂R/∂B to the gradients of A and B; return R, a scalar.

        Args:
            weight: γ.
        """
        total = []
        for module, adapter, gram in self._layers:
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            value, gradient_a, gradient_b = orthogonality(base_weight(module), gram, a, b, module.scaling[adapter])
            total.append(value)
            for parameter, gradient in ((a, gradient_a), (b, gradient_b)):
                step = gradient * (weight / len(self._layers))
                parameter.grad = step if parameter.grad is None else parameter.grad.add_(step)
        return torch.stack(total).mean()


def orthogonality(
    weight: Tensor, gram: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ‖D·Dᵀ − I‖_F of one layer and its gradient for A and for B.

    Args:
        weight: (out, in), W0.
        gram: (out, out), W0·W0ᵀ.
        lora_a: (r, in), A.
        lora_b: (out, r), B.
        scaling: s.

    Returns:
        the value, a scalar; (r, in); (out, r).
    """
    product = weight.to(lora_a.dtype) @ lora_a.T
    inner = lora_a @ lora_a.T
    low_rank = (scaling * product + 0.5 * scaling**2 * (lora_b @ inner)) @ lora_b.T
    full = gram + low_rank + low_rank.T
    squared = full.diagonal().clamp_min(torch.finfo(full.dtype).tiny)
    inverse = squared.rsqrt()
    cosines = full * inverse[:, None] * inverse
    row_sums = cosines.square().sum(dim=1)
    value = (row_sums.sum() - len(squared)).clamp_min(torch.finfo(full.dtype).tiny).sqrt()
    weights = cosines * inverse[:, None] * inverse
    weights.diagonal().sub_(row_sums / squared)
    weighted_b = weights @ lora_b
    # V·Aᵀ = W0·Aᵀ + s·B·(A·Aᵀ) and Bᵀ·H·V, each without V.
    gradient_b = weights @ (product + scaling * (lora_b @ inner))
    gradient_a = weighted_b.T @ weight.to(lora_a.dtype) + scaling * (weighted_b.T @ lora_b) @ lora_a
    factor = 2 * scaling / value
    return value, factor * gradient_a, factor * gradient_b


def _gram(module: Any) -> Tensor:
    weight = base_weight(module)
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return weight @ weight.T
