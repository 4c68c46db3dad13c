"""BiDoRA: bi-level fine-tuning of weight-decomposed low-rank adapters, saved as plain PEFT DoRA adapters."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AdapterOptions": "peft_bidora.adapter.attach",
    "attach_adapter": "peft_bidora.adapter.attach",
    "head_modules": "peft_bidora.adapter.attach",
    "load_adapter": "peft_bidora.adapter.export",
    "merge_adapter": "peft_bidora.adapter.export",
    "save_adapter": "peft_bidora.adapter.export",
    "BiDoRAArguments": "peft_bidora.training.arguments",
    "BiDoRATrainer": "peft_bidora.training.trainer",
    "BilevelMixin": "peft_bidora.training.bilevel_mixin",
    "shard_base": "peft_bidora.training.sharding",
    "BiDoRAError": "peft_bidora.errors",
    "Recipe": "peft_bidora.recipe.schema",
    "load_recipe": "peft_bidora.recipe.load",
    "run": "peft_bidora.recipe.run",
    "evaluate": "peft_bidora.recipe.finished",
    "predict_file": "peft_bidora.recipe.predict",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that the command line starts without torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
