"""The one way in which this package asks for a gradient."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[[], Tensor]


def loss_and_gradient(losses: Sequence[Loss], parameters: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return Σ lossᵢ and its gradient; no `.grad` is read or written.

    Args:
        losses: one closure a micro-batch, each scaled so that the sum is the loss of the whole batch; they are
            evaluated in turn, so that the memory is that of one. A loss is a scalar, or of lanes (lanes,): each of
            its own part of the parameters, so that the gradient of their sum is that of each.
        parameters: leaves of the graph; one that a loss does not reach gets zeros.

    Returns:
        the summed loss, detached, and one tensor of the shape of each parameter.
    """
    total: Tensor | None = None
    gradient: list[Tensor] | None = None
    for loss in losses:
        value = loss()
        if value.requires_grad:
            parts = torch.autograd.grad(value.sum(), parameters, allow_unused=True, materialize_grads=True)
        else:  # it reaches none of them
            parts = tuple(torch.zeros_like(parameter) for parameter in parameters)
        total = value.detach() if total is None else total + value.detach()
        gradient = list(parts) if gradient is None else [a + b for a, b in zip(gradient, parts, strict=True)]
    if total is None or gradient is None:
        raise ValueError("losses is empty; expected one closure for each micro-batch, at least one")
    return total, tuple(gradient)


def mixed_product(
    losses: Sequence[Loss], parameters: Sequence[Tensor], direction: Sequence[Tensor], vector: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return (∂²Σlossᵢ / ∂parameters ∂direction) · vector by differentiating twice; exact.

    Args:
        losses: as in `loss_and_gradient`; each graph must be differentiable twice.
        parameters: what the result has the shapes of.
        direction: the leaves of the first differentiation.
        vector: one tensor of the shape of each of `direction`.
    """
    product = [torch.zeros_like(parameter) for parameter in parameters]
    for loss in losses:
        first = torch.autograd.grad(
            loss().sum(), direction, create_graph=True, allow_unused=True, materialize_grads=True
        )
        reached = [(g, v) for g, v in zip(first, vector, strict=True) if g.requires_grad]
        if not reached:
            continue
        second = torch.autograd.grad(
            [g for g, _ in reached],
            parameters,
            grad_outputs=[v for _, v in reached],
            allow_unused=True,
            materialize_grads=True,
        )
        product = [a + b for a, b in zip(product, second, strict=True)]
    return tuple(product)
