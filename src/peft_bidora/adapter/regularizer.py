"""The orthogonality regulariser of the direction, with a gradient in closed form.

    R(V) = mean over layers of ‖D·Dᵀ − I‖_F,   D = V / n,   so that   ‖D·Dᵀ − I‖² = ‖D·Dᵀ‖² − out

    G = V·Vᵀ = W0·W0ᵀ + U·Bᵀ + B·Uᵀ,   U = s·W0·Aᵀ + ½s²·B·(A·Aᵀ),   w = 1 / n² = 1 / diag(G)
    ‖D·Dᵀ‖² = Σ w_i q_i,   q_i = Σ_j G_ij² w_j
    ∂½‖D·Dᵀ‖²/∂V = 2·H·V,   H·X = w ⊙ G·(w ⊙ X) − w² ⊙ q ⊙ X

Since U and V·Aᵀ lie in the span of B and W0·Aᵀ, one product of W0·W0ᵀ with 2r columns is all that costs out²·r, and
G itself is never built.
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
            factors = a.to(gram.dtype), b.to(gram.dtype)
            value, gradient_a, gradient_b = orthogonality(base_weight(module), gram, *factors, module.scaling[adapter])
            total.append(value)
            for parameter, gradient in ((a, gradient_a), (b, gradient_b)):
                step = (gradient * (weight / len(self._layers))).to(parameter.dtype)
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
    rank = len(lora_a)
    product = weight.to(lora_a.dtype) @ lora_a.T
    inner = lora_a @ lora_a.T
    half = scaling * product + 0.5 * scaling**2 * (lora_b @ inner)  # U
    moved = product + scaling * (lora_b @ inner)  # V·Aᵀ
    squared = gram.diagonal() + 2 * (half * lora_b).sum(dim=1)
    # A row of zeros is orthogonal to all; w² must be finite for it to count as such.
    inverse = squared.clamp_min(torch.finfo(squared.dtype).tiny ** 0.5).reciprocal()[:, None]  # w
    of_both = gram @ (inverse * torch.cat([lora_b, product], dim=1))
    of_b, of_product = of_both[:, :rank], of_both[:, rank:]
    of_half = scaling * of_product + 0.5 * scaling**2 * (of_b @ inner)
    left, right = torch.cat([half, lora_b], dim=1), torch.cat([lora_b, half], dim=1)  # G − W0·W0ᵀ = left·rightᵀ
    row_sums = torch.linalg.vecdot(gram * inverse.T, gram)[:, None]
    row_sums += 2 * (left * torch.cat([of_b, of_half], dim=1)).sum(dim=1, keepdim=True)
    row_sums += ((left @ (right.T @ (inverse * right))) * left).sum(dim=1, keepdim=True)  # q
    value = ((inverse * row_sums).sum() - len(gram)).clamp_min(torch.finfo(gram.dtype).tiny).sqrt()

    def weighted(columns: Tensor, of_columns: Tensor) -> Tensor:
        """Return H·X of columns X, given W0·W0ᵀ·(w ⊙ X)."""
        full: Tensor = of_columns + left @ (right.T @ (inverse * columns)) - inverse * row_sums * columns
        return inverse * full

    weighted_b = weighted(lora_b, of_b)
    gradient_b = weighted(moved, of_product + scaling * (of_b @ inner))
    # Bᵀ·H·V without V.
    gradient_a = weighted_b.T @ weight.to(lora_a.dtype) + scaling * (weighted_b.T @ lora_b) @ lora_a
    factor = 2 * scaling / value
    return value, factor * gradient_a, factor * gradient_b


def _gram(module: Any) -> Tensor:
    weight = base_weight(module)
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return weight @ weight.T
