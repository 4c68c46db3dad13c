"""The one way in which this package asks for a gradient, on one process or on many.

`torch.autograd.grad` sets off none of the hooks by which DistributedDataParallel reduces: a loss calls the model inside
of it, and what comes out is reduced here.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

Loss = Callable[[], Tensor]
Reduction = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]  # of what a process has -> of what all have


def alone(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors as they are: the reduction of one process."""
    return tuple(tensors)


def mean_over_ranks(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the mean of each tensor over all processes, the same to the bit on each of them.

    Each process scales its losses by the number of processes, as Trainer does: the mean of N · (sum over its items) /
    (all items) is the mean over all items, however unequal the parts are.

    Args:
        tensors: of the same shapes on each process; they are sent in one buffer, of float32 or more.
    """
    dtype = torch.float64 if any(each.dtype == torch.float64 for each in tensors) else torch.float32
    buffer = torch.cat([each.detach().flatten().to(dtype) for each in tensors])
    dist.all_reduce(buffer)
    buffer /= dist.get_world_size()
    parts = torch.split(buffer, [each.numel() for each in tensors])
    return tuple(part.view(each.shape).to(each.dtype) for part, each in zip(parts, tensors, strict=True))


def loss_and_gradient(
    losses: Sequence[Loss], parameters: Sequence[Tensor], reduction: Reduction = alone
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return Σ lossᵢ and its gradient, reduced over the processes; no `.grad` is read or written.

    Args:
        losses: one closure a micro-batch, each scaled so that the sum is the loss of the whole batch; they are
            evaluated in turn, so that the memory is that of one. A loss is a scalar, or of lanes (lanes,): each of
            its own part of the parameters, so that the gradient of their sum is that of each.
        parameters: leaves of the graph; one that a loss does not reach gets zeros.
        reduction: of the loss and the gradient together, once all losses are summed.

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
    total, *gradient = reduction([total, *gradient])
    return total, tuple(gradient)


def mixed_product(
    losses: Sequence[Loss],
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    vector: Sequence[Tensor],
    reduction: Reduction = alone,
) -> tuple[Tensor, ...]:
    """Return (∂²Σlossᵢ / ∂parameters ∂direction) · vector by differentiating twice, reduced over the processes; exact.

    Args:
        losses: as in `loss_and_gradient`; each graph must be differentiable twice.
        parameters: what the result has the shapes of.
        direction: the leaves of the first differentiation.
        vector: one tensor of the shape of each of `direction`, the same on all processes.
        reduction: of the product.
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
    return reduction(product)
