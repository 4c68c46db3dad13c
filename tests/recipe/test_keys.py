"""Every key of a recipe is read by a run (contract 11)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft_bidora.recipe.load import load_recipe, recipe_keys
from peft_bidora.recipe.options import adapter_options, baseline_arguments, bidora_arguments
from peft_bidora.recipe.prepare import prepare, read_rows


class Recording:
    """A recipe that writes down which of its keys are read."""

    def __init__(self, section: Any, read: set[str], prefix: str = "") -> None:
        self._section, self._read, self._prefix = section, read, prefix

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._section, name)
        fields = type(self._section).model_fields
        if name not in fields:
            return value
        key = self._prefix + (fields[name].alias or name)
        if type(value).__name__.endswith("Section"):
            return Recording(value, self._read, f"{key}.")
        self._read.add(key)
        return value


def test_every_key_is_read(make_recipe: Callable[..., Path]) -> None:
    read: set[str] = set()
    recipe: Any = Recording(load_recipe(make_recipe()), read)
    by_steps: Any = Recording(load_recipe(make_recipe(search__steps=None, search__epochs=1.0)), read)
    by_epochs: Any = Recording(load_recipe(make_recipe(retrain__steps=None, retrain__epochs=1.0)), read)
    cut_test: Any = Recording(load_recipe(make_recipe(data__test=None, data__test_fraction=0.2)), read)
    prepare(recipe)
    read_rows(cut_test)
    adapter_options(recipe)
    baseline_arguments(recipe, selection=True)
    for each in (recipe, by_steps, by_epochs):
        bidora_arguments(each, selection=True)
    assert set(recipe_keys()) - read == set()
