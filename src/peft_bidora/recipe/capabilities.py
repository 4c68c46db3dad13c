"""What goes together with a recipe, told by the checks that refuse what does not."""

from collections.abc import Callable
from typing import Any

from peft_bidora.errors import BiDoRAError
from peft_bidora.recipe.checks import check_processes
from peft_bidora.recipe.loading import check_loading
from peft_bidora.recipe.prepare import Prepared
from peft_bidora.recipe.schema import Recipe
from peft_bidora.recipe.sharding import divides_weights
from peft_bidora.tasks.base_model import load_config

EXACT, PROCESSES, LANES = "search.hypergradient=exact", "torchrun, two processes", "--lanes, compare side by side"
SHARDS = "--use_fsdp --fsdp_version 2, two processes"
CHANGES: dict[str, dict[str, Any]] = {
    "precision=bfloat16": {"precision": "bfloat16"},
    "base_dtype=bfloat16": {"base_dtype": "bfloat16"},
    "quantization=8bit": {"quantization": "8bit"},
    "quantization=4bit": {"quantization": "4bit"},
    "activation_checkpointing=true": {"activation_checkpointing": True},
    EXACT: {"search": {"hypergradient": "exact"}},
}


def capabilities(prepared: Prepared) -> dict[str, str | None]:
    """Return, for each of the things that save memory or time, why it does not go with a recipe; None where it does.

    Args:
        prepared: the run; no weights are loaded.
    """
    recipe, config = prepared.recipe, load_config(prepared.source)
    found: dict[str, str | None] = {}
    for name, change in CHANGES.items():
        found[name] = _reason(check_loading, _changed(recipe, change), prepared.kind, config)
    if recipe.method != "bidora":
        found[EXACT] = f"method={recipe.method} has no search."
    found[PROCESSES] = _reason(check_processes, recipe, 2)
    found[SHARDS] = _reason(divides_weights, recipe, 2, {"FSDP_VERSION": "2"})
    found[LANES] = "method=full trains the base model, which lanes share." if recipe.method == "full" else None
    return found


def _changed(recipe: Recipe, change: dict[str, Any]) -> Recipe:
    parts = {
        name: getattr(recipe, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    return recipe.model_copy(update=parts)


def _reason(check: Callable[..., Any], *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except BiDoRAError as error:
        return " ".join(error.faults)
    return None
