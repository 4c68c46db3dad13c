"""The trainable parameters of an adapted model: direction ∪ magnitude, disjoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_bidora.adapter.layer import dora_layers
from peft_bidora.errors import AdapterError


@dataclass(frozen=True)
class Levels:
    """The parameters of the two levels, by name.

    Args:
        direction: every A and B, and the task head: the lower level.
        magnitude: every m, (out_features,) each: the upper level.
    """

    direction: dict[str, nn.Parameter]
    magnitude: dict[str, nn.Parameter]


def split_levels(model: nn.Module) -> Levels:
    """Return the trainable parameters by level.

    Raises:
        AdapterError: the model has no DoRA magnitudes, or nothing else to train.
    """
    magnitudes = {
        id(module.lora_magnitude_vector[adapter].weight): is_trained(module, adapter)
        for _, module, adapter in dora_layers(model)
    }
    named = dict(model.named_parameters())
    magnitude = {name: parameter for name, parameter in named.items() if magnitudes.get(id(parameter))}
    direction = {
        name: parameter
        for name, parameter in named.items()
        if parameter.requires_grad and id(parameter) not in magnitudes
    }
    if not magnitude or not direction:
        raise AdapterError(
            f"expected a PEFT model with DoRA magnitudes and a trainable direction, got {len(magnitude)} magnitudes and"
            f" {len(direction)} other trainable parameters. Wrap the model with LoraConfig(use_dora=True)."
        )
    return Levels(direction, magnitude)


def is_trained(module: Any, adapter: str) -> bool:
    """Return whether the direction of an adapter is trained in a layer, and so its magnitude: another may be frozen."""
    return bool(module.lora_A[adapter].weight.requires_grad or module.lora_B[adapter].weight.requires_grad)


def snapshot(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return a copy of each parameter, on the CPU."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}


def restore(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    """Copy the values of a snapshot back.

    Raises:
        AdapterError: the snapshot is of other parameters.
    """
    if parameters.keys() != values.keys():
        differing = sorted(parameters.keys() ^ values.keys())
        raise AdapterError(
            f"expected a snapshot of the same {len(parameters)} parameters; these stand on one side only:"
            f" {', '.join(differing[:3])}. Use the model that the snapshot was made of."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def require_gradient(parameters: Sequence[nn.Parameter], required: bool) -> None:
    """Say whether the parameters take part in differentiation."""
    for parameter in parameters:
        parameter.requires_grad_(required)
