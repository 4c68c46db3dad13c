"""Linear algebra over tuples of tensors, read as one long vector; all results stay on the device.

Of lanes, problems that are solved side by side, each tensor has the lane axis in front, and what is a scalar of one
problem is a vector of the lanes'.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


def dot(left: Tensors, right: Tensors, *, lanes: bool = False) -> Tensor:
    """Return Σ leftᵢ · rightᵢ, a scalar tensor; (lanes,) of lanes."""
    products = (a * b for a, b in zip(left, right, strict=True))
    return torch.stack([each.flatten(1).sum(1) if lanes else each.sum() for each in products]).sum(0)


def norm(tensors: Tensors, *, lanes: bool = False) -> Tensor:
    """Return the Euclidean norm over all elements of all tensors, a scalar tensor; (lanes,) of lanes."""
    lengths = [each.flatten(1).norm(dim=1) for each in tensors] if lanes else torch._foreach_norm(list(tensors))
    length: Tensor = torch.stack(lengths).norm(dim=0)
    return length


def cosine(left: Tensors, right: Tensors, *, lanes: bool = False) -> Tensor:
    """Return the cosine of the angle between two tuples, a scalar tensor, or (lanes,); 0 if either is zero."""
    length = norm(left, lanes=lanes) * norm(right, lanes=lanes)
    product = dot(left, right, lanes=lanes)
    return torch.where(length > 0, product / length.clamp_min(torch.finfo(length.dtype).tiny), 0.0)


def scaled(tensors: Tensors, scale: Tensor | float) -> tuple[Tensor, ...]:
    """Return scale · tensorᵢ for each i; a scale of (lanes,) is one of each lane."""
    return tuple(_along(scale, each) * each for each in tensors)


def add_scaled(left: Tensors, right: Tensors, scale: Tensor | float) -> tuple[Tensor, ...]:
    """Return leftᵢ + scale · rightᵢ for each i; a scale of (lanes,) is one of each lane."""
    return tuple(a + _along(scale, b) * b for a, b in zip(left, right, strict=True))


def _along(scale: Tensor | float, tensor: Tensor) -> Tensor | float:
    if isinstance(scale, Tensor) and scale.ndim == 1:
        return scale.view(-1, *[1] * (tensor.ndim - 1))
    return scale
