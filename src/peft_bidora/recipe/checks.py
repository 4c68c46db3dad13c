"""What of a recipe, a model and a tokenizer does not go together; no weights are loaded."""

from collections.abc import Sequence
from typing import Any

from peft_bidora.data.wording import suggestion
from peft_bidora.errors import ModelError, RecipeError
from peft_bidora.recipe.options import phase_steps
from peft_bidora.recipe.schema import Recipe

WITHOUT_PACKAGE = "flyte"  # transformers does not say whether its package is there
EVERY = ("all", "none")


def check_upper_steps(recipe: Recipe, lower_rows: int | None) -> None:
    """Raise RecipeError if the search ends before the first upper step.

    Args:
        recipe: the recipe.
        lower_rows: of the lower split; None where they are not known.
    """
    search = recipe.search
    if recipe.method != "bidora" or (search.steps is None and lower_rows is None):
        return
    steps = phase_steps(search, lower_rows or 0)
    if steps < search.lower_steps:
        raise RecipeError(
            f"search.lower_steps={search.lower_steps}: the search has {steps} steps, so that no upper step would be"
            " taken and the magnitudes would stay as they are. Lower it, or make the search longer."
        )


def check_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError for each tracker that transformers does not know or whose package is missing."""
    from transformers.integrations import integration_utils

    if len(names) == 1 and names[0] in EVERY:
        return
    known = list(integration_utils.INTEGRATION_TO_CALLBACK)
    installed = {*integration_utils.get_available_reporting_integrations(), WITHOUT_PACKAGE} if names else set()
    faults = [
        f"report_to={name}: its package is not installed. Install it, or leave it out."
        if name in known
        else f"report_to={name}: expected trackers of {', '.join(known)}.{suggestion(name, known)} Correct it."
        for name in names
        if name not in known or name not in installed
    ]
    if faults:
        raise RecipeError(*faults)


def check_vocabulary(model: str, config: Any, tokenizer: Any) -> None:
    """Raise ModelError if the tokenizer has tokens for which the model has no embedding."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(size, int) and len(tokenizer) > size:
        raise ModelError(
            f"model={model}: its tokenizer has {len(tokenizer)} tokens, but the model has embeddings for {size}. Save"
            " the tokenizer that belongs to it, or the model after resize_token_embeddings(len(tokenizer))."
        )
