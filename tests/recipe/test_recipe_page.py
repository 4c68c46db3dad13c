"""docs/recipe.md has every key of a recipe, with its default."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from peft_bidora.recipe.schema import Recipe

PAGE = Path(__file__).parents[2] / "docs/recipe.md"


def defaults(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every dotted key and its default; None where there is none or the run decides."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= defaults(field.annotation, f"{key}.")
        else:
            found[key] = None if field.default is PydanticUndefined else field.default
    # A phase without steps and epochs gets steps.
    return found | ({} if prefix else {"search.steps": 200, "retrain.steps": 300})


def told() -> dict[str, Any]:
    """The same from the page; what is not in code marks is words, and counts as None."""
    found: dict[str, Any] = {}
    for keys, values in re.findall(r"^\|( `[^|]+)\|([^|]*)\|", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        names = re.findall(r"`([^`]+)`", keys)
        shown = re.fullmatch(r"(`[^`]+`(, `[^`]+`)*)", values.strip())
        parts = re.findall(r"`([^`]+)`", values) if shown else [None]
        for name, value in zip(names, parts * len(names) if len(parts) == 1 else parts, strict=True):
            found[name] = None if value is None else yaml.safe_load(value)
    return found


def test_page_has_every_key_and_no_other_with_its_default() -> None:
    expected = {key: None if value == [] else value for key, value in defaults(Recipe).items()}
    assert told().keys() == expected.keys()
    assert told() == expected
