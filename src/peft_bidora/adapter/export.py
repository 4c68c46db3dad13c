"""Save, load and merge an adapter; what is saved is PEFT's own folder and needs nothing of this package."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_bidora.adapter.attach import use_closed_form
from peft_bidora.adapter.layer import dora_layers, effective_change
from peft_bidora.adapter.weight import low_rank_factors
from peft_bidora.errors import AdapterError


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter (A, B, m and the head) as a PEFT folder: `adapter_config.json` and safetensors."""
    model.save_pretrained(str(folder))


def load_adapter(folder: Path, base_model: nn.Module, is_trainable: bool = False) -> PeftModel:
    """Return the base model with the adapter of a folder, computing in closed form.

    Args:
        folder: what `save_adapter` or PEFT wrote.
        base_model: the model that the adapter was trained on.
        is_trainable: False freezes the adapter.

    Raises:
        AdapterError: the folder holds no adapter.
    """
    if not (folder / "adapter_config.json").is_file():
        raise AdapterError(f"{folder} holds no adapter: expected adapter_config.json there. Name the adapter's folder.")
    model = PeftModel.from_pretrained(base_model, str(folder), is_trainable=is_trainable)
    use_closed_form(model)
    return model


def merge_adapter(model: PeftModel, logits: Callable[[nn.Module], Tensor], tolerance: float) -> PreTrainedModel:
    """Return the base model with the adapter merged into its weights, after comparing the two.

    Args:
        model: the PEFT model; it is used up, as by PEFT's `merge_and_unload`.
        logits: computes the logits of a model on rows of its task.
        tolerance: the largest absolute difference of a logit that is accepted.

    Raises:
        AdapterError: the merged model computes something else.
    """
    model.eval()
    with torch.no_grad():
        expected = logits(model)
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
        difference = (logits(merged) - expected).abs().max().item()
    if not difference <= tolerance:
        raise AdapterError(
            f"merging changed the logits by up to {difference:.3g}, more than the tolerance of {tolerance:.3g}."
            " Load the base model in float32 to merge, or serve the adapter unmerged."
        )
    return merged


@torch.no_grad()
def convert_to_lora(model: PeftModel, lora: PeftModel) -> dict[str, float]:
    """Give a LoRA adapter the change of the weights that a DoRA adapter makes, as far as its rank goes.

    PEFT's own `save_as_lora` drops the magnitudes of DoRA; here they are part of the change.

    Args:
        model: the PEFT model with the DoRA adapter.
        lora: the same base model with a LoRA adapter of the same modules; its adapter and head are overwritten.

    Returns:
        the relative error of each layer, by the layer's name; see `low_rank_factors`.

    Raises:
        AdapterError: `model` has no DoRA layers, or the rank exceeds a side of a weight.
    """
    layers = {name: module for name, module in lora.named_modules() if isinstance(module, LoraLayer)}
    errors = {}
    for name, module, adapter in dora_layers(model):
        target = layers[name]
        rank = target.r[adapter]
        change = effective_change(module, adapter)
        if rank > min(change.shape):
            raise AdapterError(f"rank={rank}: {name} has the shape {tuple(change.shape)}. Name a rank up to its sides.")
        a, b, errors[name] = low_rank_factors(change, rank)
        target.lora_A[adapter].weight.copy_(a)
        target.lora_B[adapter].weight.copy_(b / target.scaling[adapter])
    if not errors:
        raise AdapterError("expected a DoRA adapter, got one without magnitudes. A LoRA adapter is served as it is.")
    trained = model.state_dict()
    for name, tensor in lora.state_dict().items():
        if ".modules_to_save." in name:
            tensor.copy_(trained[name])
    return errors
