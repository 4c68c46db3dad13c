"""How the base model of a run is loaded: its attention, and the bits of its frozen weights."""

from importlib.util import find_spec
from typing import Any

from peft_bidora.adapter.attach import head_modules
from peft_bidora.errors import Faults, ModelError, RecipeError
from peft_bidora.recipe.schema import Recipe
from peft_bidora.tasks.base_model import load_config, skeleton
from peft_bidora.tasks.task import TaskKind

NF4_BLOCK = 64  # numbers that share a scale in float32


def loading_options(recipe: Recipe, kind: TaskKind, source: str) -> dict[str, Any]:
    """Return what `from_pretrained` is told of the base model beyond its task.

    Args:
        recipe: of the run.
        kind: of its task.
        source: of the model, as `resolve_model` returns it.
    """
    options: dict[str, Any] = {}
    if recipe.method == "bidora" and recipe.search.hypergradient == "exact":
        options["attn_implementation"] = "eager"
    if (packed := packing(recipe, kind, source)) is not None:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(**packed)
    return options


def packing(recipe: Recipe, kind: TaskKind, source: str) -> dict[str, Any] | None:
    """Return how bitsandbytes packs the frozen weights, as plain values; None where it does not.

    Into 8 bits (LLM.int8, arXiv:2208.07339) or into 4 (NF4, arXiv:2305.14314). Embeddings, norms, the task head and the
    output of a language model stay as they are. Args as in `loading_options`.
    """
    if recipe.quantization is None:
        return None
    config = load_config(source)
    model = skeleton(config, kind.auto_class(config))
    output = model.get_output_embeddings()
    kept = [*head_modules(model), *(name for name, module in model.named_modules() if module is output)]
    if recipe.quantization == "8bit":
        return {"load_in_8bit": True, "llm_int8_skip_modules": kept}
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": recipe.precision}
    return {**four, "llm_int8_skip_modules": kept}


def saved_bytes(recipe: Recipe, kind: TaskKind, source: str) -> float:
    """Return by how many bytes the packed weights are less than in float32, args as in `loading_options`."""
    packed = packing(recipe, kind, source)
    if packed is None:
        return 0.0
    import torch
    from transformers.pytorch_utils import Conv1D

    config = load_config(source)
    model = skeleton(config, kind.auto_class(config))
    kept = tuple(packed["llm_int8_skip_modules"])
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and not f"{name}.".startswith(tuple(f"{each}." for each in kept))
    )
    return linear * (4 - (1 if recipe.quantization == "8bit" else 1 / 2 + 4 / NF4_BLOCK))


def check_loading(recipe: Recipe, kind: TaskKind, config: Any) -> None:
    """Raise where the base model cannot be loaded or trained as the recipe says; all faults.

    Args:
        recipe: of the run.
        kind: of its task.
        config: of the model.

    Raises:
        RecipeError: packed weights do not go together with the rest of the recipe, or bitsandbytes is missing.
        ModelError: activation checkpointing is asked of a model that has none.
    """
    faults, named = Faults(), f"quantization={recipe.quantization}"
    packed = recipe.quantization is not None
    if packed and recipe.method == "full":
        faults.add(RecipeError(f"{named} freezes the weights, which method=full trains. Use lora, dora or bidora."))
    if packed and recipe.method == "bidora" and recipe.search.hypergradient == "exact":
        faults.add(
            RecipeError(
                f"{named}: products with packed weights cannot be differentiated twice, as search.hypergradient=exact"
                " does. Use finite-difference, or leave the weights in float32."
            )
        )
    if packed and find_spec("bitsandbytes") is None:
        faults.add(
            RecipeError(f"{named} needs a package that is not installed: pip install 'peft-bidora[quantization]'")
        )
    if recipe.activation_checkpointing:
        model = skeleton(config, kind.auto_class(config))
        if not model.supports_gradient_checkpointing:
            faults.add(
                ModelError(
                    f"activation_checkpointing: {type(model).__name__} of transformers has none. Leave it out; a lower"
                    " batch_size with gradient_accumulation_steps saves memory too."
                )
            )
    faults.raise_any()
