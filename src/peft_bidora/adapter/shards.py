"""Base weights that are divided over processes (FSDP2): whole in a pass through their block, a part elsewhere."""

from torch import Tensor, nn


def is_sharded(module: nn.Module) -> bool:
    """Return whether the weights of a model, or of a layer, are divided."""
    return bool(getattr(module, "_is_fsdp_managed_module", False))  # set by fully_shard; transformers reads it too


def whole(weight: Tensor) -> Tensor:
    """Return a weight with the parts of all processes, which have to ask for it together."""
    gather = getattr(weight, "full_tensor", None)  # of a DTensor: between passes
    full: Tensor = weight if gather is None else gather()
    return full
