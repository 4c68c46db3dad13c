"""The drop-in for PEFT's DoRA forward pass: the same values, the norm in closed form and, on demand, in the graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from peft_bidora.adapter.weight import apply_scale, row_norm


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
        scale = module.lora_magnitude_vector[active_adapter].weight / self._norm(module, active_adapter)
        scale = scale.to(result.dtype)
        bias = getattr(module.get_base_layer(), "bias", None)
        bias = None if bias is None else bias.to(result.dtype)
        dropout = module.lora_dropout[active_adapter]
        dropped = dropout(x) if module.training else x
        low_rank = module.lora_B[active_adapter](module.lora_A[active_adapter](dropped))
        low_rank = low_rank * module.scaling[active_adapter]
        if isinstance(dropout, nn.Identity) or not module.training:
            return apply_scale(result, bias, low_rank, scale)
        # As in PEFT, the dropped input also passes W0 in the part that the magnitude adds.
        dropped_result = _through_base(module, dropped)
        return result - dropped_result + apply_scale(dropped_result, bias, low_rank, scale)

    def _norm(self, module: Any, adapter: str) -> Tensor:
        with torch.set_grad_enabled(self.norm_in_graph and torch.is_grad_enabled()):
            lora_a, lora_b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            with torch.autocast(lora_a.device.type, enabled=False):
                return row_norm(
                    base_row_norm_squared(module), base_product(module, lora_a), lora_a, lora_b, module.scaling[adapter]
                )


def base_product(module: Any, lora_a: Tensor) -> Tensor:
    """Return W0·Aᵀ, (out, r), through the base layer's own forward pass."""
    product, bias = _through_base(module, lora_a), getattr(module.get_base_layer(), "bias", None)
    return product.T if bias is None else (product - bias).T


def base_row_norm_squared(module: Any) -> Tensor:
    """Return ‖W0‖² of each row, (out,), at least float32; computed once for a base weight."""
    weight = module.get_base_layer().weight
    # Merging replaces the storage, copying into it raises the version: either makes the old norm stale.
    key = (weight.data_ptr(), weight._version, weight.device)
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
    direction = weight + low_rank
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


def _through_base(module: Any, x: Tensor) -> Tensor:
    """Return W0·x + bias of an x that has the precision of the adapter, which need not be that of W0."""
    base_layer = module.get_base_layer()
    result: Tensor = base_layer(x.to(base_layer.weight.dtype) if base_layer.weight.is_floating_point() else x)
    return result
