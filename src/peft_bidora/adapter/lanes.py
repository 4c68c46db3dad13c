"""Adapters side by side over one frozen base model: each lane its own A, B, m and head.

The rows of a batch are those of the first lane, then those of the second, as many of each. W0 sees them all in one
product; what belongs to a lane has the lane axis in front: A (lanes, r, in), B (lanes, out, r), m (lanes, out).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.func import functional_call, vmap

from peft_bidora.adapter.layer import Factors, adapted, direction_norm
from peft_bidora.errors import AdapterError


@dataclass(frozen=True)
class Lanes:
    """The trained parameters of several adapters, stacked, by the names that they have in the model of one.

    Args:
        direction: every A and B, and the task head, (lanes, ...).
        magnitude: every m, (lanes, out); a lane of LoRA has ones there, which nothing reads.
    """

    direction: dict[str, nn.Parameter]
    magnitude: dict[str, nn.Parameter]

    def of_lane(self, lane: int) -> dict[str, Tensor]:
        """Return the parameters of one lane by name: views, that share storage with the stacked ones."""
        return {name: stacked.detach()[lane] for name, stacked in {**self.direction, **self.magnitude}.items()}


def stack_lanes(
    model: PeftModel, values: Sequence[Mapping[str, Tensor]], scalings: Sequence[float], *, norm_in_graph: bool
) -> Lanes:
    """Let a PEFT model compute with several adapters at once, in place of its own.

    Args:
        model: with a LoRA or DoRA adapter of linear layers; its own A, B, m and head are left as they are, unread.
        values: of each lane its parameters by their names in the model; without magnitudes it is one of LoRA.
        scalings: of each lane s = alpha / rank.
        norm_in_graph: whether the row norms are differentiated through.

    Raises:
        AdapterError: the adapter is none of linear layers alone.
    """
    if not values or len(values) != len(scalings):
        raise ValueError(f"expected a scaling for each of one lane or more, got {len(values)} and {len(scalings)}")
    direction: dict[str, nn.Parameter] = {}
    magnitude: dict[str, nn.Parameter] = {}
    for name, module, adapter in _adapted_layers(model):
        names = [f"{name}.{part}.{adapter}.weight" for part in ("lora_A", "lora_B")]
        direction |= {each: _stacked([lane[each] for lane in values], model) for each in names}
        of_magnitude = f"{name}.lora_magnitude_vector.{adapter}.weight"
        has_magnitude = torch.tensor([[of_magnitude in lane] for lane in values], device=model.device)
        ones = torch.ones_like(values[0][names[1]][:, 0])
        magnitude[of_magnitude] = _stacked([lane.get(of_magnitude, ones) for lane in values], model)
        lora_a, lora_b = (direction[each] for each in names)
        scaling = torch.tensor(scalings, dtype=lora_a.dtype, device=lora_a.device)[:, None]
        factors = Factors(lora_a, lora_b, scaling)
        module.lora_variant[adapter] = _LaneVariant(factors, magnitude[of_magnitude], has_magnitude, norm_in_graph)
    for name, wrapper in list(model.named_modules()):
        if isinstance(wrapper, ModulesToSaveWrapper):
            adapter = wrapper.active_adapter if isinstance(wrapper.active_adapter, str) else wrapper.active_adapter[0]
            head = wrapper.modules_to_save[adapter]
            head = head.inner if isinstance(head, _LaneModule) else head
            prefix = f"{name}.modules_to_save.{adapter}."
            stacked = {
                each: _stacked([lane[prefix + each] for lane in values], model) for each, _ in head.named_parameters()
            }
            wrapper.modules_to_save[adapter] = _LaneModule(head, stacked)
            direction |= {prefix + each: parameter for each, parameter in stacked.items()}
    return Lanes(direction, magnitude)


class _LaneVariant:
    """The forward pass of a layer with several adapters; stands where PEFT's variant of DoRA does.

    Args:
        factors: A, B and s of the lanes.
        magnitude: (lanes, out), m.
        has_magnitude: (lanes, 1), False for a lane of LoRA, whose scale is 1.
        norm_in_graph: as in `ClosedFormDoraVariant`.
    """

    def __init__(self, factors: Factors, magnitude: Tensor, has_magnitude: Tensor, norm_in_graph: bool) -> None:
        self.factors, self.magnitude, self.norm_in_graph = factors, magnitude, norm_in_graph
        self._has_magnitude = has_magnitude
        some, every = bool(has_magnitude.any()), bool(has_magnitude.all())
        self._some, self._every = some, every

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Return W'·x + bias of each row, by the adapter of its lane; shapes as in `ClosedFormDoraVariant`."""
        return adapted(module, module.lora_dropout[active_adapter], x, result, self.factors, self._scale(module))

    def _scale(self, module: Any) -> Tensor:
        """Return c, (lanes, out)."""
        if not self._some:
            return torch.ones_like(self.magnitude)
        scale = self.magnitude / direction_norm(module, self.factors, in_graph=self.norm_in_graph)
        return scale if self._every else torch.where(self._has_magnitude, scale, 1.0)


class _LaneModule(nn.Module):
    """A task head with parameters of its own for each lane.

    Args:
        inner: the head of one model; its own parameters are unread.
        stacked: (lanes, ...) each, by the names that they have in `inner`.
    """

    def __init__(self, inner: nn.Module, stacked: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self._stacked = dict(stacked)  # no registered parameters: they are those of the lanes

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs of each row by the head of its lane, (lanes · rows, ...)."""

        def of_one(parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
            output: Tensor = functional_call(self.inner, parameters, (rows, *args), kwargs)
            return output

        lanes = len(next(iter(self._stacked.values())))
        rows = x.reshape(lanes, -1, *x.shape[1:])
        outputs: Tensor = vmap(of_one, randomness="different")(self._stacked, rows)
        return outputs.flatten(0, 1)


def _adapted_layers(model: PeftModel) -> Iterator[tuple[str, Any, str]]:
    """Yield (name, layer, active adapter) of every adapted layer.

    Raises:
        AdapterError: one is no linear layer.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            if adapter not in module.lora_A:
                raise AdapterError(
                    f"{name} is {type(module.get_base_layer()).__name__}; lanes adapt linear layers only. Leave it out"
                    " of target_modules."
                )
            yield name, module, adapter


def _stacked(values: Sequence[Tensor], model: PeftModel) -> nn.Parameter:
    return nn.Parameter(torch.stack(list(values)).to(model.device))
