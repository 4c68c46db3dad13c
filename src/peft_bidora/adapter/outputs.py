"""Whether the gradient of each scale m/n may be read off its layer's output, which saves what it would keep."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peft_bidora.adapter.layer import direction_norm, dora_layers, factors_of

SMALLEST = 0.25  # of the row norm of V: down to this magnitude an output is read with at most 4 times the rounding


def keep_outputs(model: nn.Module) -> None:
    """Read the gradient of every scale m/n off the layer's output from now on, if no scale is too small for that.

    It saves most of the memory that this gradient takes; see `leaves_outputs_alone` for where it may be done. Call it
    again when magnitudes have changed, which costs one transfer from the device; `set_norm_in_graph` ends it.
    """
    layers = [(module, adapter) for _, module, adapter in dora_layers(model)]
    small = [_has_small_scale(module, adapter) for module, adapter in layers]
    keep = bool(small) and not any(torch.stack([each.to(small[0].device) for each in small]).tolist())
    for module, adapter in layers:
        module.lora_variant[adapter].keep_output = keep


def leaves_outputs_alone(model: nn.Module, forward: Callable[[], Any]) -> bool:
    """Return whether nothing writes into the output of an adapted layer: what was kept for a gradient would be lost.

    Args:
        model: its buffers are put back.
        forward: a pass in the mode that is asked about; no graph is made.
    """
    outputs: list[tuple[Tensor, int]] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append((output, output._version)))
        for _, module, _ in dora_layers(model)
    ]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, value in buffers:
            buffer.copy_(value)
    return all(output._version == version for output, version in outputs)


@torch.no_grad()
def _has_small_scale(module: Any, adapter: str) -> Tensor:
    magnitude: Tensor = module.lora_magnitude_vector[adapter].weight
    length = direction_norm(module, factors_of(module, adapter), in_graph=False)
    return ((magnitude.abs() < SMALLEST * length) | (magnitude == 0)).any()
