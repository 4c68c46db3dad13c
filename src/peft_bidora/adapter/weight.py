"""The row norm of the direction in closed form: pure functions.

    V  = W0 + s·B·A                 (out_features, in_features), never built
    n  = ‖V‖, row by row            (out_features,)
    W' = (m / n) ⊙ V                the adapted weight

    W0 (out, in)   A (r, in)   B (out, r)   m (out,)   s = lora_alpha / r

Of lanes, adapters side by side over one W0, every shape but that of W0 has the lane axis in front.

Reference: Liu et al. (DoRA), arXiv:2402.09353, section 4.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def row_norm(
    base_squared: Tensor, base_product: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float | Tensor
) -> Tensor:
    """Return n = ‖W0 + s·B·A‖ of each row without the sum.

    n² = ‖W0‖² + 2s · rowsum((W0·Aᵀ) ⊙ B) + s² · rowsum((B·(A·Aᵀ)) ⊙ B)

    Args:
        base_squared: (out,), the squared L2 norm of each row of W0.
        base_product: ([lanes,] out, r), W0·Aᵀ.
        lora_a: ([lanes,] r, in), A.
        lora_b: ([lanes,] out, r), B.
        scaling: s; (lanes, 1) where each lane has its own.

    Returns:
        ([lanes,] out), in the precision of `base_squared`.
    """
    cross = (base_product * lora_b).sum(dim=-1)
    low_rank = ((lora_b @ (lora_a @ lora_a.mT)) * lora_b).sum(dim=-1)
    squared = base_squared + 2 * scaling * cross + scaling**2 * low_rank
    # Rounding may leave a row that cancels to nothing a little below zero.
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()


def rows_by_weight(rows: Tensor, weight: Tensor) -> Tensor:
    """Return rows·W0ᵀ, ([lanes,] r, out), in the finer precision of the two.

    Args:
        rows: ([lanes,] r, in).
        weight: (out, in), W0, which has no gradient.
    """
    dtype = torch.promote_types(rows.dtype, weight.dtype)
    if dtype == weight.dtype:
        return rows.to(dtype) @ weight.T
    return rows_by_packed(rows.to(dtype), torch.t, weight.T)


def rows_by_packed(rows: Tensor, unpack: Callable[..., Tensor], *packed: Tensor) -> Tensor:
    """Return rows·W0ᵀ, ([lanes,] r, out), of a W0 in fewer bits than the rows; no copy of it outlives the product.

    Args:
        rows: ([lanes,] r, in).
        unpack: returns W0, (out, in), of what it is packed into.
        packed: what it is packed into, which has no gradient.
    """
    product: Tensor = _ByPacked.apply(rows, unpack, True, *packed)  # type: ignore[no-untyped-call]
    return product


class _ByPacked(torch.autograd.Function):
    """rows·W0ᵀ, or rows·W0, whose derivative is the other of the two."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, unpack: Callable[..., Tensor], transposed: bool, *packed: Tensor) -> Tensor:
        ctx.save_for_backward(*packed)
        ctx.unpack, ctx.transposed = unpack, transposed
        weight = unpack(*packed).to(rows.dtype)
        return rows @ (weight.T if transposed else weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        packed = ctx.saved_tensors
        product = _ByPacked.apply(gradient, ctx.unpack, not ctx.transposed, *packed)  # type: ignore[no-untyped-call]
        return product, None, None, *(None for _ in packed)


def low_rank_factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the A and B whose product is nearest to a change of a weight, and what they miss of it.

    B·A is the singular value decomposition cut after `rank` terms, the nearest in the Frobenius norm (Eckart and
    Young, 1936); the root of each singular value goes into A and into B.

    Args:
        change: (out, in).
        rank: r, from 1 up to the smaller side.

    Returns:
        (r, in); (out, r); ‖change − B·A‖ / ‖change‖, 0 where the change is zero.
    """
    u, singular, v = torch.linalg.svd(change, full_matrices=False)
    root = singular[:rank].sqrt()
    missed, total = singular[rank:].square().sum().sqrt().item(), singular.square().sum().sqrt().item()
    return root[:, None] * v[:rank], u[:, :rank] * root, missed / total if total else 0.0
