"""What goes together with weights that are divided over the processes; no weights are loaded."""

from collections.abc import Mapping

from peft_bidora.errors import Faults, RecipeError
from peft_bidora.recipe.checks import check_processes
from peft_bidora.recipe.schema import Recipe
from peft_bidora.training.sharding import require_torch

# What each option has to be, and what to do where it is not. The rest say how shards are made, which is settled here.
_EXPECTED = {
    "FSDP_VERSION": ("2", "Start it with --fsdp_version 2, or torchrun with FSDP_VERSION=2."),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "Leave --fsdp_reshard_after_forward out."),
    "FSDP_OFFLOAD_PARAMS": ("false", "Leave --fsdp_offload_params out; weights stay on their devices."),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "Set activation_checkpointing: true in the recipe."),
}


def divides_weights(recipe: Recipe, count: int, fsdp: Mapping[str, str] | None) -> bool:
    """Return whether the processes of a run divide the frozen weights; one process has them whole.

    Args:
        recipe: of the run.
        count: of the processes.
        fsdp: as `launched.fsdp` gives it.

    Raises:
        RecipeError: the recipe cannot be divided; all faults.
    """
    faults = Faults()
    faults.check(check_processes, recipe, count)
    if fsdp is not None and count > 1:
        faults.check(require_torch)
        faults.check(check_fsdp, fsdp)
        faults.check(check_sharding, recipe)
    faults.raise_any()
    return fsdp is not None and count > 1


def check_fsdp(options: Mapping[str, str]) -> None:
    """Raise RecipeError for each option of accelerate's FSDP that is not as weights are divided here.

    Args:
        options: by their names in the environment; all but the version may be left out.
    """
    given = {"FSDP_VERSION": "1", **options}  # accelerate's default
    faults = [
        f"{name}={given[name]}: expected {expected}. {instead}"
        for name, (expected, instead) in _EXPECTED.items()
        if given.get(name, expected).lower() != expected
    ]
    if faults:
        raise RecipeError(*faults)


def check_sharding(recipe: Recipe) -> None:
    """Raise RecipeError for all of a recipe that does not go together with divided weights."""
    faults = []
    if recipe.method == "full":
        faults.append(
            "FSDP divides the weights that are frozen, and method=full trains them all. Use lora, dora or bidora, or"
            " start it without --use_fsdp."
        )
    if recipe.quantization is not None:
        faults.append(
            f"quantization={recipe.quantization}: packed weights are not divided. Leave it out, or start it without"
            " --use_fsdp."
        )
    if recipe.method == "bidora" and recipe.search.hypergradient == "exact":
        faults.append(
            "search.hypergradient=exact differentiates twice, and FSDP lets the weights go after the first time. Use"
            " finite-difference, or start it without --use_fsdp."
        )
    if faults:
        raise RecipeError(*faults)
