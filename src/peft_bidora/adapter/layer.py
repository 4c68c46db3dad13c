"""The drop-in for PEFT's DoRA forward pass: the same values, the norm in closed form and, on demand, in the graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from peft_bidora.adapter.kept import forget, kept
from peft_bidora.adapter.packed import int8_parts, is_int8, unpack_int8
from peft_bidora.adapter.scaled_sum import add_low_rank, folded, outside_autocast, projected, scaled_sum, shift_of
from peft_bidora.adapter.shards import is_part, is_sharded, times_parts, whole
from peft_bidora.adapter.weight import row_norm, rows_by_packed, rows_by_weight

_PREDICTION, _BASE_NORM = "prediction_constants", "base_row_norm_squared"  # what a layer keeps


class ClosedFormDoraVariant(DoraLinearVariant):
    """PEFT's variant of a linear DoRA layer with another forward pass; merging and saving stay PEFT's.

    One object serves all layers of an adapter, so that one attribute says how the norm is treated.

    Args:
        norm_in_graph: True differentiates through n (the bi-level search needs it); False takes it as a constant,
            as PEFT and section 4.3 of DoRA do. The values are the same.
        keep_output: True keeps a layer's output for the gradient of its scale, not W0·x; see `outputs.keep_outputs`.
    """

    def __init__(self, norm_in_graph: bool = False, keep_output: bool = False) -> None:
        self.norm_in_graph, self.keep_output = norm_in_graph, keep_output

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
        forget(module, _PREDICTION)  # what trains may write past the version counters that the cache trusts
        factors = factors_of(module, active_adapter)
        magnitude = module.lora_magnitude_vector[active_adapter].weight
        scale = magnitude / direction_norm(module, factors, in_graph=self.norm_in_graph)
        dropout = module.lora_dropout[active_adapter]
        return adapted(module, dropout, x, result, factors, scale, keep_output=self.keep_output)


class Factors(NamedTuple):
    """What the direction of a layer is made of besides W0: A, ([lanes,] r, in); B, ([lanes,] out, r); s."""

    lora_a: Tensor
    lora_b: Tensor
    scaling: float | Tensor


def factors_of(module: Any, adapter: str) -> Factors:
    """Return A, B and s of an adapter in a layer, those of its lanes where there are any."""
    of_lanes: Factors | None = getattr(module.lora_variant.get(adapter), "factors", None)
    return of_lanes or Factors(module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.scaling[adapter])


def adapted(
    module: Any,
    dropout: nn.Module,
    x: Tensor,
    result: Tensor,
    factors: Factors,
    scale: Tensor,
    *,
    keep_output: bool = False,
) -> Tensor:
    """Return c ⊙ (W0 + s·B·A)·x + bias, of which the dropout is before all that the adapter adds.

    Args:
        module: PEFT's LoRA layer.
        dropout: of the adapter.
        x: (..., in), the input.
        result: (..., out), W0·x + bias.
        factors: A, B and s.
        scale: ([lanes,] out), c.
        keep_output: as in `scaled_sum`.
    """
    lora_a, lora_b, scaling = factors
    bias = getattr(module.get_base_layer(), "bias", None)
    if isinstance(dropout, nn.Identity) or not module.training:
        return scaled_sum(result, x, lora_a, lora_b, scale, bias, scaling, keep_output=keep_output)
    # As in PEFT, the dropped input also passes W0 in the part that the magnitude adds.
    dropped = dropout(x)
    dropped_result = _through_base(module, dropped)
    return result - dropped_result + scaled_sum(dropped_result, dropped, lora_a, lora_b, scale, bias, scaling)


def direction_norm(module: Any, factors: Factors, *, in_graph: bool) -> Tensor:
    """Return n, ([lanes,] out).

    Args:
        module: PEFT's LoRA layer.
        factors: A, B and s.
        in_graph: whether it may be differentiated.
    """
    lora_a, lora_b, scaling = factors
    with torch.set_grad_enabled(in_graph and torch.is_grad_enabled()), outside_autocast(lora_a):
        return row_norm(base_row_norm_squared(module), base_product(module, lora_a), lora_a, lora_b, scaling)


def _predict(module: Any, adapter: str, x: Tensor, result: Tensor) -> Tensor:
    """Return W'·x + bias, with what does not depend on x kept until a parameter changes."""
    dtype = result.dtype
    factors, magnitude = factors_of(module, adapter), module.lora_magnitude_vector[adapter].weight
    lora_a, lora_b, scaling = factors
    bias: Tensor | None = getattr(module.get_base_layer(), "bias", None)

    def constants() -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        scale = (magnitude / direction_norm(module, factors, in_graph=False)).to(dtype)
        shift = shift_of(scale, None if bias is None else bias.to(dtype))
        return scale, shift, lora_a.to(dtype), folded(lora_b.to(dtype), scale, scaling)

    tensors = [lora_a, lora_b, magnitude, *_base_tensors(module)]
    with outside_autocast(result):
        scale, shift, lora_a, folded_b = kept(module, _PREDICTION, tensors, (adapter, scaling, dtype), constants)
        result = result.contiguous()  # never written into: a hook of the base layer may keep it
        scaled = result * scale if shift is None else torch.addcmul(shift, result, scale)
        return add_low_rank(scaled, projected(x.to(dtype), lora_a), folded_b)


def forget_constants(model: nn.Module) -> None:
    """Let every layer compute anew what it keeps: what is written through `.data` goes unseen otherwise."""
    for module in model.modules():
        forget(module)


def base_product(module: Any, lora_a: Tensor) -> Tensor:
    """Return W0·Aᵀ, ([lanes,] out, r); through the base layer's own forward pass where its weight is packed."""
    weight = module.get_base_layer().weight
    if is_part(weight):
        return times_parts(lora_a, weight if module.fan_in_fan_out else weight.T).mT
    if weight.is_floating_point():
        return rows_by_weight(lora_a, base_weight(module)).mT  # r rows: faster than r columns
    if is_int8(weight):  # whose forward pass rounds what it reads too
        return rows_by_packed(lora_a, unpack_int8, *int8_parts(module.get_base_layer())).mT
    with _without_bias(module.get_base_layer()):
        return _through_base(module, lora_a).mT


def base_row_norm_squared(module: Any) -> Tensor:
    """Return ‖W0‖² of each row, (out,), at least float32; computed once for a base weight."""

    def squared() -> Tensor:
        matrix = base_weight(module)
        return matrix.to(torch.promote_types(matrix.dtype, torch.float32)).square().sum(dim=1)

    return kept(module, _BASE_NORM, _base_tensors(module)[:1], None, squared)


def base_weight(module: Any) -> Tensor:
    """Return W0 as (out, in), whatever way round the layer stores it."""
    base_layer = module.get_base_layer()
    weight: Tensor = whole(base_layer.weight)
    if is_int8(weight):
        weight = unpack_int8(*int8_parts(base_layer))
    elif not is_sharded(base_layer) and (type(weight) is not nn.Parameter or not weight.is_floating_point()):
        weight = dequantize_module_weight(base_layer)
    weight = weight.detach()
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
    """Say whether every DoRA layer of the model differentiates through its norm; no outputs are kept then."""
    for _, module, adapter in dora_layers(model):
        variant = module.lora_variant[adapter]
        variant.norm_in_graph, variant.keep_output = norm_in_graph, False


@contextmanager
def norm_in_graph(model: nn.Module) -> Iterator[None]:
    """Differentiate through the norms inside the block, and take them as constants after it."""
    set_norm_in_graph(model, True)
    try:
        yield
    finally:
        set_norm_in_graph(model, False)


def _base_tensors(module: Any) -> list[Tensor]:
    """Return W0 and its bias, by which what is kept is found stale; none where they come and go, and never change."""
    base_layer = module.get_base_layer()
    found = (base_layer.weight, getattr(base_layer, "bias", None))
    return [] if is_sharded(base_layer) else [each for each in found if each is not None]


@contextmanager
def _without_bias(layer: Any) -> Iterator[None]:
    """Take the bias off for the time of the block: added and subtracted, it would drown a product in bfloat16."""
    bias = getattr(layer, "bias", None)
    if bias is None:
        yield
        return
    layer.bias = None
    try:
        yield
    finally:
        layer.bias = bias


def _through_base(module: Any, x: Tensor) -> Tensor:
    """Return W0·x + bias of an x that has the precision of the adapter, which need not be that of W0."""
    base_layer = module.get_base_layer()
    result: Tensor = base_layer(x.to(base_layer.weight.dtype) if base_layer.weight.is_floating_point() else x)
    return result
