"""Turn a base model into a PEFT model whose DoRA layers compute in closed form."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_bidora.adapter.freed import give_back_freed
from peft_bidora.adapter.layer import ClosedFormDoraVariant, base_row_norm_squared, dora_layers
from peft_bidora.adapter.packed import COARSE, hold_layout
from peft_bidora.errors import AdapterError

# The endings of query and value projections, as the architectures name them; the first that all occur are taken.
_QUERY_VALUE = (
    ("query", "value"),
    ("query_proj", "value_proj"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("qkv",),
    ("Wqkv",),
)
# Parts of a base model that take no part in its forward pass: an adapter there would never learn.
_ASIDE = {"contact_head"}  # ESM's, which reads attention for another purpose


@dataclass(frozen=True)
class AdapterOptions:
    """The shape of an adapter.

    Args:
        rank: r, the rows of A.
        alpha: lora_alpha; the scaling is s = alpha / rank.
        dropout: the probability of zeroing an input of A, in [0, 1).
        target_modules: what to adapt: None for query and value, "all-linear", or endings of module names.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: str | Sequence[str] | None = None


def head_modules(model: nn.Module) -> list[str]:
    """Return the names of the task head: the children that have parameters and stand beside the base model.

    A pooler inside the base model came with its weights and stays frozen; one beside it is new and is trained, and so
    is what the model lists as `new_modules`, for which it had no weights.
    What holds the output of a language model came with its weights too, and is no task head.
    """
    prefix, output = getattr(model, "base_model_prefix", ""), _output(model)
    if not hasattr(model, prefix):
        return []
    beside = [
        name
        for name, child in model.named_children()
        if name != prefix
        and any(True for _ in child.parameters())
        and not any(module is output for module in child.modules())
    ]
    return [*beside, *getattr(model, "new_modules", ())]


def resolve_target_modules(model: nn.Module, target_modules: str | Sequence[str] | None) -> list[str]:
    """Return the endings of the modules to adapt; needs no weights, a model on the meta device will do.

    Args:
        model: a transformers model, before PEFT.
        target_modules: as in `AdapterOptions`.

    Raises:
        AdapterError: nothing matches, or no query and value are known for the architecture.
    """
    names = list(linear_layers(model))
    endings = sorted({name.split(".")[-1] for name in names})
    if target_modules == "all-linear":
        return names
    if target_modules is None:
        for candidate in _QUERY_VALUE:
            if set(candidate) <= set(endings):
                return list(candidate)
        raise AdapterError(
            f"adapter.target_modules is not set and {type(model).__name__} has no query and value projections that are"
            f" known. Name some of its linear layers: {', '.join(endings)}; or write all-linear."
        )
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    faults = []
    for name in wanted:
        if not any(full == name or full.endswith(f".{name}") for full in names):
            near = difflib.get_close_matches(name, endings, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            faults.append(
                f"adapter.target_modules: {name!r} matches no linear layer of {type(model).__name__}.{hint}"
                f" There are: {', '.join(endings)}; or write all-linear."
            )
    if faults or not wanted:
        raise AdapterError(*faults or ["adapter.target_modules is an empty list; name a layer, or write null."])
    return wanted


def count_trainable(model: nn.Module, options: AdapterOptions, *, use_dora: bool, head: Sequence[str]) -> int:
    """Return the parameters that `attach_adapter` would make trainable; a model on the meta device will do.

    A layer has r · (in + out) of them, and with DoRA `out` more.

    Args:
        model: a transformers model, before PEFT.
        options: the shape of the adapter.
        use_dora: whether there are magnitudes.
        head: modules that are trained whole.
    """
    endings = resolve_target_modules(model, options.target_modules)
    count = sum(p.numel() for name in head for p in model.get_submodule(name).parameters())
    for name, module in linear_layers(model).items():
        if any(name == ending or name.endswith(f".{ending}") for ending in endings):
            rows, columns = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
            count += options.rank * (rows + columns) + (rows if use_dora else 0)
    return count


def attach_adapter(
    model: nn.Module,
    options: AdapterOptions,
    *,
    use_dora: bool,
    task_type: str | None = None,
    head: Sequence[str] = (),
) -> PeftModel:
    """Return the model with a fresh adapter; its outputs are those of the base model.

    Args:
        model: a transformers model; it is changed in place, as by PEFT.
        options: the shape of the adapter.
        use_dora: True for DoRA (magnitude and direction), False for LoRA.
        task_type: PEFT's, such as "SEQ_CLS".
        head: modules that are trained whole and saved with the adapter.

    Raises:
        AdapterError: the target modules match nothing, or are none that DoRA covers: a weight with rows of zeros has
            no direction there.
    """
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=resolve_target_modules(model, options.target_modules),
        use_dora=use_dora,
        task_type=task_type,
        modules_to_save=list(head) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    hold_layout(model)  # PEFT takes the first magnitudes from the weights
    peft_model = get_peft_model(model, config)
    if use_dora:
        use_closed_form(peft_model)
        _refuse_zero_rows(peft_model)
        _measure_coarse_rows(peft_model)
    give_back_freed()  # PEFT takes the norms of W0 + s·B·A
    return peft_model


def use_closed_form(model: PeftModel) -> None:
    """Give every DoRA layer of a PEFT model the closed-form forward pass; layers that have it keep theirs.

    Raises:
        AdapterError: a DoRA layer is no linear layer (an embedding or a convolution, say).
    """
    variant = ClosedFormDoraVariant()
    layers = list(dora_layers(model))
    for name, module, adapter in layers:
        if type(module.lora_variant.get(adapter)) not in (DoraLinearVariant, ClosedFormDoraVariant):
            raise AdapterError(
                f"{name} is {type(module.get_base_layer()).__name__}; the bi-level search adapts linear layers only."
                " Leave it out of target_modules."
            )
    for _, module, adapter in layers:
        if type(module.lora_variant[adapter]) is DoraLinearVariant:
            module.lora_variant[adapter] = variant
    hold_layout(model)


def _refuse_zero_rows(model: PeftModel) -> None:
    """PEFT divides by the norms of the rows: the saved adapter would give nothing but NaN."""
    for name, module, _ in dora_layers(model):
        zero = base_row_norm_squared(module) == 0
        if not zero.is_meta and (rows := int(zero.sum())):
            raise AdapterError(
                f"{rows} of the {len(zero)} rows of {name} are zeros, which have no direction: DoRA is not defined"
                " there. Leave it out of target_modules, or use LoRA."
            )


@torch.no_grad()
def _measure_coarse_rows(model: PeftModel) -> None:
    """Set the magnitudes over weights in 16 bits, which PEFT rounds to as many, to the norms of the rows."""
    for _, module, adapter in dora_layers(model):
        weight = module.get_base_layer().weight
        if weight.dtype in COARSE:
            module.lora_magnitude_vector[adapter].weight.copy_(base_row_norm_squared(module).sqrt())


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Return what can be adapted, by name: the linear layers of the base model, without a language model's output."""
    head, output = head_modules(model), _output(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not any(f"{name}.".startswith(f"{part}.") for part in head)
        and not _ASIDE.intersection(name.split("."))
        and module is not output
    }


def _output(model: nn.Module) -> nn.Module | None:
    """The language-modelling head, which is never adapted."""
    get = getattr(model, "get_output_embeddings", None)
    output: nn.Module | None = get() if get is not None else None
    return output
