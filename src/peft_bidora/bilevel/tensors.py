"""Linear algebra over tuples of tensors, read as one long vector; all results stay on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


def dot(left: Tensors, right: Tensors) -> Tensor:
    """Return Σ leftᵢ · rightᵢ, a scalar tensor."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def norm(tensors: Tensors) -> Tensor:
    """Return the Euclidean norm over all elements of all tensors, a scalar tensor."""
    length: Tensor = torch.stack(torch._foreach_norm(list(tensors))).norm()
    return length


def cosine(left: Tensors, right: Tensors) -> Tensor:
    """Return the cosine of the angle between two tuples, a scalar tensor; 0 if either is zero."""
    length = norm(left) * norm(right)
    return torch.where(length > 0, dot(left, right) / length.clamp_min(torch.finfo(length.dtype).tiny), 0.0)


def add_scaled(left: Tensors, right: Tensors, scale: Tensor | float) -> tuple[Tensor, ...]:
    """Return leftᵢ + scale · rightᵢ for each i."""
    return tuple(a + scale * b for a, b in zip(left, right, strict=True))
