"""How the base model of a run is loaded: its attention, and the bits of its frozen weights."""

from importlib.util import find_spec
from typing import Any

from peft_bidora.adapter.attach import head_modules, linear_layers
from peft_bidora.adapter.held import held_weights, leave_file, round_to_bfloat16
from peft_bidora.errors import Faults, ModelError, RecipeError
from peft_bidora.recipe.schema import Recipe
from peft_bidora.tasks.base_model import load_config, skeleton
from peft_bidora.tasks.task import Task, TaskKind

# Of a frozen number in a linear layer; in NF4 64 of them share a scale in float32.
BYTES = {"8bit": 1, "4bit": 1 / 2 + 4 / 64}


def load_base_model(recipe: Recipe, kind: TaskKind, task: Task, source: str, tokenizer: Any) -> Any:
    """Return the model of a run before it is adapted, weights that are to be held in bfloat16 rounded.

    Args:
        recipe: of the run.
        kind: of its task.
        task: which loads it, with a head of its own.
        source: of the model, as `resolve_model` returns it.
        tokenizer: of the run.

    Raises:
        ModelError: the weights cannot be loaded.
    """
    model = task.load_model(source, tokenizer, **loading_options(recipe, kind, source))
    if recipe.base_dtype == "bfloat16":
        round_to_bfloat16(model)
    elif recipe.quantization is not None:
        leave_file(model)
    return model


def loading_options(recipe: Recipe, kind: TaskKind, source: str) -> dict[str, Any]:
    """Return what `from_pretrained` is told of the base model beyond its task, args as in `load_base_model`."""
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
    output of a language model stay as they are. Args as in `load_base_model`.
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


def saved_bytes(recipe: Recipe, model: Any) -> float:
    """Return by how many bytes the frozen weights are less than in float32.

    Args:
        recipe: of the run.
        model: its base model, on the meta device.
    """
    if recipe.quantization is not None:
        numbers = sum(layer.weight.numel() for layer in linear_layers(model).values())
        return float(numbers * (4 - BYTES[recipe.quantization]))
    return 2.0 * sum(weight.numel() for weight in held_weights(model)) if recipe.base_dtype == "bfloat16" else 0.0


def check_loading(recipe: Recipe, kind: TaskKind, config: Any) -> None:
    """Raise where the base model cannot be loaded or trained as the recipe says; all faults.

    Args:
        recipe: of the run.
        kind: of its task.
        config: of the model.

    Raises:
        RecipeError: weights in few bits do not go together with the rest of the recipe, or bitsandbytes is missing.
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
    if recipe.base_dtype == "bfloat16":
        faults.check(_check_bfloat16, recipe)
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


def _check_bfloat16(recipe: Recipe) -> None:
    faults = []
    if recipe.method == "full":
        faults.append(
            "base_dtype=bfloat16 holds frozen weights, and method=full trains them all. Use lora, dora or bidora, or"
            " precision=bfloat16 alone."
        )
    if recipe.precision != "bfloat16":
        faults.append(
            f"base_dtype=bfloat16: expected precision=bfloat16 beside it, got {recipe.precision}. Set it, or leave"
            " base_dtype out."
        )
    if recipe.quantization is not None:
        faults.append(
            f"base_dtype=bfloat16 and quantization={recipe.quantization} hold the same weights in two ways; expected"
            " one of them. Leave the other out."
        )
    if faults:
        raise RecipeError(*faults)
