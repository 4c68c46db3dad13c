"""Base weights that are divided over processes (FSDP2): whole in a pass through their block, a part elsewhere."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


def is_sharded(module: nn.Module) -> bool:
    """Return whether the weights of a model, or of a layer, are divided."""
    return bool(getattr(module, "_is_fsdp_managed_module", False))  # set by fully_shard; transformers reads it too


def is_part(weight: Tensor) -> bool:
    """Return whether this process holds a part of a weight alone, as between passes."""
    return hasattr(weight, "full_tensor")  # of a DTensor


def whole(weight: Tensor) -> Tensor:
    """Return a weight with the parts of all processes, which have to ask for it together."""
    full: Tensor = weight.full_tensor() if is_part(weight) else weight  # type: ignore[attr-defined]
    return full


def whole_rows(weight: Any, rows: Tensor) -> Tensor:
    """Return some rows of a weight whose rows are divided, (k, n); what is sent is these rows, not the weight.

    Args:
        weight: (m, n), as it is stored.
        rows: (k,), the same on all processes, which have to ask together.
    """
    part, mesh = weight.to_local(), weight.device_mesh
    first = mesh.get_local_rank() * -(-weight.shape[0] // mesh.size())
    here = (rows >= first) & (rows < first + len(part))
    picked: Tensor = part.new_zeros(len(rows), weight.shape[1])
    picked[here] = part[rows[here] - first]
    dist.all_reduce(picked, group=mesh.get_group())
    return picked


@torch.no_grad()
def times_parts(left: Tensor, weight: Any) -> Tensor:
    """Return left·weight, (m, n), of a weight that is divided: each process multiplies with its part.

    What is sent is the product, not the weight; the result is the same to the bit on all processes.

    Args:
        left: (m, k), the same on all processes, which have to ask together.
        weight: (k, n), or the transpose of one that is stored so.
    """
    from torch.distributed.tensor import DTensor, Replicate

    dtype = torch.promote_types(left.dtype, weight.dtype)
    everywhere = DTensor.from_local(left.to(dtype), weight.device_mesh, [Replicate()], run_check=False)
    return whole(everywhere @ weight.to(dtype))
