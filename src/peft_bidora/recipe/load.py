"""Read a recipe from YAML and `key=value` overrides; every fault is one sentence, all are reported at once."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from peft_bidora.errors import RecipeError
from peft_bidora.recipe.schema import Recipe

MERGE = "tag:yaml.org,2002:merge"


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe.

    A data path, and a model's, is taken relative to the recipe's folder if it exists there, else to the current one;
    the output relative to the current folder.

    Args:
        path: a YAML file.
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        RecipeError: one fault for each thing that is wrong.
    """
    recipe, unknown = read_recipe(path, overrides)
    if unknown:
        raise RecipeError(*unknown)
    return recipe


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """Return the recipe without the keys that there are not, and a sentence for each; as `load_recipe` otherwise."""
    values = _read(path)
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            faults.append(f"{override!r}: expected key=value, such as search.steps=100.")
            continue
        _put(values, key.split("."), _parse(text, override))
    if faults:
        raise RecipeError(*faults)
    _relocate(values, path.parent)
    try:
        return Recipe.model_validate(values), []
    except ValidationError as error:
        unknown = _sentences(error)
        if any(fault["type"] != "extra_forbidden" for fault in error.errors()):
            raise RecipeError(*unknown) from None
        for fault in error.errors():
            _remove(values, fault["loc"])
    try:
        return Recipe.model_validate(values), unknown
    except ValidationError as error:
        raise RecipeError(*unknown, *_sentences(error)) from None


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML, every key written out."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
    return text


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested keys by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def recipe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key that holds a value."""
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from recipe_keys(field.annotation, f"{key}.")
        else:
            yield key


class _UniqueKeyLoader(yaml.SafeLoader):
    """safe_load that refuses a key given twice; what a merge key (`<<`) brings may be given anew."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()  # a mapping that was merged holds the keys of both from then on

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._refuse_twice(node)
        super().flatten_mapping(node)

    def _refuse_twice(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist; expected a recipe in YAML. Correct the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read ({error}); expected a recipe in YAML, UTF-8.") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        held = "nothing" if values is None else type(values).__name__
        raise RecipeError(f"{path} holds {held}; expected keys and values. See the README's recipe.")
    return values


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeyLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise RecipeError(f"{where}{line}: broken YAML: {reason}. Correct it.") from None
    except (ValueError, RecursionError) as error:  # a date that is none, or what contains itself
        raise RecipeError(f"{where}: broken YAML: {error}. Correct it.") from None


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.get(key)
        values[key] = inner = dict(inner) if isinstance(inner, dict) else {}
        values = inner
    values[keys[-1]] = value


def _remove(values: dict[str, Any], keys: Sequence[str | int]) -> None:
    for key in keys[:-1]:
        values = values[str(key)]
    del values[str(keys[-1])]


def _relocate(values: dict[str, Any], folder: Path) -> None:
    data = values.get("data")
    named = [(data, key) for key in ("train", "test", "selection")] if isinstance(data, dict) else []
    for section, key in [(values, "model"), *named]:
        if not isinstance(section.get(key), str):
            continue
        for path in (folder / section[key], Path(section[key])):
            if os.path.exists(path):  # which is False for what is no path at all
                section[key] = str(path.resolve())  # the run folder's recipe is read from anywhere
                break


def _sentences(error: ValidationError) -> list[str]:
    """One sentence a key: the members of a union each have a fault of the same value."""
    joined: dict[str, str] = {}
    for sentence in (_sentence(dict(fault)) for fault in error.errors()):
        subject, _, expected = sentence.partition(": input should be ")
        if expected and subject in joined:
            joined[subject] = f"{joined[subject].removesuffix('.')} or {expected}"
        else:
            joined[subject] = sentence
    return list(joined.values())


def _hint(parts: list[str], known: list[str]) -> str:
    """Return what was meant by a key that there is not: the same key of another section, a section, or a near key."""
    same = [name for name in known if name.split(".")[-1] == parts[-1]]
    sections = list(dict.fromkeys(name.split(".")[0] for name in known if "." in name))
    if len(parts) == 1 and (near := difflib.get_close_matches(parts[0], sections, n=1, cutoff=0.7)):
        return f" Did you mean the section {near[0]!r}?"
    near = same or difflib.get_close_matches(".".join(parts), known, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {' or '.join(map(repr, near))}?"
    tops = list(dict.fromkeys(name.split(".")[0] for name in known))
    return f" There are {', '.join(tops)}, and their keys in docs/recipe.md."


def _sentence(fault: dict[str, Any]) -> str:
    """One sentence for one of pydantic's faults: the key, what came, what was expected."""
    parts = [str(part) for part in fault["loc"]]
    known = list(recipe_keys())
    while parts and ".".join(parts) not in known and len(parts) > 1 and fault["type"] != "extra_forbidden":
        shorter = parts[:-1]
        if not any(key == ".".join(shorter) or key.startswith(".".join(shorter) + ".") for key in known):
            parts = shorter  # pydantic appends the member of a union
        elif ".".join(parts) not in known and not any(key.startswith(".".join(parts) + ".") for key in known):
            parts = shorter
        else:
            break
    key = ".".join(parts)
    if fault["type"] == "extra_forbidden":
        return f"{key}: there is no such key.{_hint(parts, known)}"
    if fault["type"] == "missing":
        return f"{key} is missing. Set it in the recipe or as {key}=VALUE."
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{key or 'recipe'}{'' if fault['type'] == 'value_error' else '=' + repr(fault['input'])}: {message}."
