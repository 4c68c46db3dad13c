"""What training does to the weights: how far their rows turn, and how far they change in length.

    ΔM = mean over rows of | ‖w‖ − ‖w0‖ |          ΔD = mean over rows of 1 − cos(w, w0)

over a layer's rows w of the adapted weight and w0 of the pretrained one. Plotted over layers and checkpoints, a slope
below 0 says that layers that turn further change less in length, as full fine-tuning does; one above 0 that both go
together, as LoRA does.

Reference: Liu et al. (DoRA), arXiv:2402.09353, section 3.2, there with the columns of the transposed weight.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from peft_bidora.adapter.layer import base_weight, effective_change


@dataclass(frozen=True)
class Change:
    """How a layer's weight differs from the pretrained one.

    Args:
        layer: its name.
        magnitude: ΔM, in the unit of the weight.
        relative_magnitude: ΔM over the mean length of the pretrained rows, without unit.
        direction: ΔD, from 0 to 2.
    """

    layer: str
    magnitude: float
    relative_magnitude: float
    direction: float


@torch.no_grad()
def decompose(layer: str, weight: Tensor, base: Tensor) -> Change:
    """Return ΔM and ΔD of a weight.

    Args:
        layer: its name.
        weight: (out_features, in_features), adapted.
        base: (out_features, in_features), pretrained.
    """
    weight, base = weight.double(), base.double()  # 1 − cos of nearly equal rows cancels
    lengths, base_lengths = weight.norm(dim=1), base.norm(dim=1)
    tiny = torch.finfo(torch.float64).tiny
    cosine = (weight * base).sum(dim=1) / (lengths * base_lengths).clamp_min(tiny)
    # A row of zeros has no direction to turn from.
    turned = torch.where(base_lengths > 0, 1 - cosine.clamp(-1, 1), 0.0)
    magnitude = (lengths - base_lengths).abs().mean()
    return Change(
        layer, magnitude.item(), (magnitude / base_lengths.mean().clamp_min(tiny)).item(), turned.mean().item()
    )


def decompose_adapter(model: nn.Module) -> list[Change]:
    """Return ΔM and ΔD of every layer that a LoRA or DoRA adapter changes.

    Args:
        model: a PEFT model.
    """
    return [decompose(name, base + change, base) for name, base, change in _changes(model)]


def decompose_full(model: nn.Module, pretrained: Mapping[str, Tensor], layers: Sequence[str]) -> list[Change]:
    """Return ΔM and ΔD of layers whose weights were trained themselves.

    Args:
        model: the trained model.
        pretrained: by name, (out_features, in_features), the weights that it had before.
        layers: the names of the linear layers to look at.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    return [decompose(name, modules[name].weight, pretrained[name]) for name in layers]


def slope_and_correlation(changes: Sequence[Change]) -> tuple[float, float]:
    """Return the slope of ΔM against ΔD by least squares, and Pearson's correlation of the two; NaN for a point.

    Args:
        changes: of layers and checkpoints.
    """
    direction = np.array([change.direction for change in changes])
    magnitude = np.array([change.magnitude for change in changes])
    if len(changes) < 2 or not np.ptp(direction) or not np.ptp(magnitude):
        return float("nan"), float("nan")
    return float(np.polyfit(direction, magnitude, 1)[0]), float(np.corrcoef(direction, magnitude)[0, 1])


@torch.no_grad()
def _changes(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, W0 and W' − W0 of every adapted linear layer."""
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            if adapter not in module.lora_A:
                continue
            base = base_weight(module).float()
            if adapter in getattr(module, "lora_magnitude_vector", {}):
                change = effective_change(module, adapter)
            else:
                change = module.scaling[adapter] * module.lora_B[adapter].weight @ module.lora_A[adapter].weight
            yield name, base, change
