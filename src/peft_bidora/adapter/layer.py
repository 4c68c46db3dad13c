"""The drop-in for PEFT's DoRA forward pass: the same values, the norm in closed form and, on demand, in the graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from peft_bidora.adapter.scaled_sum import add_low_rank, folded, scaled_sum, shift_of
from peft_bidora.adapter.weight import row_norm

_CACHE = "_prediction_constants"


class ClosedFormDoraVariant(DoraLinearVariant):
    """PEFT's variant of a linear DoRA layer with another forward pass; merging and saving stay PEFT's.

    One object serves all layers of an adapter, so that one attribute says how the norm is treated.

    Args:
        norm_in_graph: True differentiates through n (the bi-level search needs it); False takes it as a constant,
            as PEFT and section 4.3 of DoRA do. The values are the same.
    """

    def __init__(self, norm_in_graph: bool = False) -> None:
        self.norm_in_graph = norm_in_graph

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Return W'·x + bias.

        Args:
            module: PEFT's LoRA layer, over nn.Linear or transformers' Conv1D.
            active_adapter: the adapter's name.
            x: (..., in), the input.
            result: (..., out), W0·x + bias.
        """
        if not torch.is_grad_enabled() and not module.training:
            return _predict(module, active_adapter, x, result)
        module.__dict__.pop(_CACHE, None)  # what trains may write past the version counters that the cache trusts
        lora_a, lora_b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        scale = module.lora_magnitude_vector[active_adapter].weight / self._norm(module, active_adapter)
        bias = getattr(module.get_base_layer(), "bias", None)
        scaling, dropout = module.scaling[active_adapter], module.lora_dropout[active_adapter]
        if isinstance(dropout, nn.Identity) or not module.training:
            return scaled_sum(result, x, lora_a, lora_b, scale, bias, scaling)
        # As in PEFT, the dropped input also passes W0 in the part that the magnitude adds.
        dropped = dropout(x)
        dropped_result: Tensor = module.get_base_layer()(dropped)
        return result - dropped_result + scaled_sum(dropped_result, dropped, lora_a, lora_b, scale, bias, scaling)

    def _norm(self, module: Any, adapter: str) -> Tensor:
        with torch.set_grad_enabled(self.norm_in_graph and torch.is_grad_enabled()):
            return _direction_norm(module, adapter)


def _direction_norm(module: Any, adapter: str) -> Tensor:
    """Return n, (out,)."""
    lora_a, lora_b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    with torch.autocast(lora_a.device.type, enabled=False):
        return row_norm(
            base_row_norm_squared(module), base_product(module, lora_a), lora_a, lora_b, module.scaling[adapter]
        )


def _predict(module: Any, adapter: str, x: Tensor, result: Tensor) -> Tensor:
    """Return W'·x + bias in place of W0·x + bias, with what does not depend on x kept until a parameter changes."""
    dtype = result.dtype
    lora_a, lora_b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    magnitude, weight = module.lora_magnitude_vector[adapter].weight, module.get_base_layer().weight
    parameters = (lora_a, lora_b, magnitude, weight)
    key: Any = None
    if not any(parameter.is_inference() for parameter in parameters):  # those do not count their changes
        key = (adapter, module.scaling[adapter], dtype, *map(_state_of, parameters))
    cached = module.__dict__.get(_CACHE)
    if cached is None or key is None or cached[0] != key:
        scale = (magnitude / _direction_norm(module, adapter)).to(dtype)
        bias = getattr(module.get_base_layer(), "bias", None)
        shift = shift_of(scale, None if bias is None else bias.to(dtype))
        cached = module.__dict__[_CACHE] = (
            key, scale, shift, lora_a.to(dtype), folded(lora_b.to(dtype), scale, module.scaling[adapter])
        )  # fmt: skip
    _, scale, shift, lora_a, folded_b = cached
    result = result.contiguous()
    scaled = result.mul_(scale) if shift is None else torch.addcmul(shift, result, scale, out=result)
    return add_low_rank(scaled, x.to(dtype) @ lora_a.T, folded_b)


def _state_of(tensor: Tensor) -> tuple[int, int, torch.device]:
    """Return what tells that a tensor has changed: another storage, or a raised version."""
    return tensor.data_ptr(), tensor._version, tensor.device


def base_product(module: Any, lora_a: Tensor) -> Tensor:
    """Return W0·Aᵀ, (out, r), through the base layer's own forward pass."""
    base_layer = module.get_base_layer()
    product: Tensor = base_layer(
        lora_a.to(base_layer.weight.dtype) if base_layer.weight.is_floating_point() else lora_a
    )
    if getattr(base_layer, "bias", None) is not None:
        product = product - base_layer.bias
    return product.T.to(lora_a.dtype)


def base_row_norm_squared(module: Any) -> Tensor:
    """Return ‖W0‖² of each row, (out,), at least float32; computed once for a base weight."""
    weight = module.get_base_layer().weight
    key = _state_of(weight)  # merging replaces the storage, copying into it raises the version
    cached: tuple[Any, Tensor] | None = module.__dict__.get("_base_row_norm_squared")
    if cached is None or cached[0] != key:
        matrix = base_weight(module)
        squared = matrix.to(torch.promote_types(matrix.dtype, torch.float32)).square().sum(dim=1)
        cached = module.__dict__["_base_row_norm_squared"] = (key, squared)
    return cached[1]


def base_weight(module: Any) -> Tensor:
    """Return W0 as (out, in), whatever way round the layer stores it."""
    weight: Tensor = dequantize_module_weight(module.get_base_layer()).detach()
    return weight.T if module.fan_in_fan_out else weight


@torch.no_grad()
def effective_change(module: Any, adapter: str) -> Tensor:
    """Return W' − W0 = (m / n) ⊙ (W0 + s·B·A) − W0 of a DoRA layer, (out, in), at least float32."""
    weight = base_weight(module).to(torch.promote_types(base_weight(module).dtype, torch.float32))
    low_rank = module.scaling[adapter] * module.lora_B[adapter].weight @ module.lora_A[adapter].weight
    direction = weight + low_rank.to(weight.dtype)
    scale = module.lora_magnitude_vector[adapter].weight / direction.norm(dim=1)
    change: Tensor = scale[:, None] * direction - weight
    return change


def dora_layers(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Yield (name, PEFT layer, active adapter) of every layer with a DoRA magnitude."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                if adapter in getattr(module, "lora_magnitude_vector", {}):
                    yield name, module, adapter


def set_norm_in_graph(model: nn.Module, norm_in_graph: bool) -> None:
    """Say whether every DoRA layer of the model differentiates through its norm."""
    for _, module, adapter in dora_layers(model):
        module.lora_variant[adapter].norm_in_graph = norm_in_graph


@contextmanager
def norm_in_graph(model: nn.Module) -> Iterator[None]:
    """Differentiate through the norms inside the block, and take them as constants after it."""
    set_norm_in_graph(model, True)
    try:
        yield
    finally:
        set_norm_in_graph(model, False)
