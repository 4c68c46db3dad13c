"""Frozen weights of linear layers held in bfloat16, all else in float32.

Under autocast a pass computes with them what it does with the same numbers in float32, to the bit. They are rounded
before the adapter is made, so that it starts from their norms, and held so after it, so that it starts in float32.
"""

from typing import Any

from peft import PeftModel
from torch import nn

from peft_bidora.adapter.attach import linear_layers
from peft_bidora.adapter.freed import give_back_freed


def held_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that can be held in bfloat16: those of the linear layers that can be adapted.

    Left out is what shares its numbers with an embedding, and what the model's class keeps in float32.

    Args:
        model: a transformers model, adapted or not; one on the meta device will do.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    embeddings = {module.weight for module in base.modules() if isinstance(module, nn.Embedding)}
    finer = set(getattr(base, "_keep_in_fp32_modules", None) or ())  # T5's `wo`, whose input takes its precision
    return [
        layer.weight
        for name, layer in linear_layers(base).items()
        if "lora_" not in name and not finer.intersection(name.split(".")) and layer.weight not in embeddings
    ]


def round_to_bfloat16(model: nn.Module) -> None:
    """Round the numbers of the weights that are to be held, where they are."""
    for weight in held_weights(model):
        weight.data = weight.data.bfloat16().float()


def hold_in_bfloat16(model: nn.Module) -> None:
    """Hold the frozen weights of linear layers in bfloat16; what else there is of a mapped file is copied from it."""
    held = set(held_weights(model))
    for parameter in model.parameters():
        if parameter in held:
            parameter.data = parameter.data.bfloat16()
    leave_file(model)
    give_back_freed()


def leave_file(model: nn.Module) -> None:
    """Copy what of a model is a view of a mapped file: each view keeps the whole of the file in memory."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
