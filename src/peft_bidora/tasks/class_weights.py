"""Weigh the loss of a class: as the user says, or against how often it occurs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from peft_bidora.data.wording import listed, suggestion
from peft_bidora.errors import RecipeError

KEY = "classification.class_weights"


def class_weights(
    option: Literal["none", "balanced"] | Mapping[str, float],
    names: Sequence[str],
    balanced: Callable[[], Sequence[float]],
) -> tuple[float, ...] | None:
    """Return a weight for each class, or None for none.

    Args:
        option: as in `TaskOptions`; a class that a mapping leaves out weighs 1, as in scikit-learn.
        names: the classes.
        balanced: computes the weights of "balanced".

    Raises:
        RecipeError: the mapping names classes that there are not.
    """
    if option == "none":
        return None
    if isinstance(option, str):
        return tuple(map(float, balanced()))
    faults = [
        f"{KEY} names the class {name!r}, but the train rows have {listed(names)}.{suggestion(name, names)}"
        f"{_yaml_hint(name)} Correct it."
        for name in option
        if name not in names
    ]
    if faults:
        raise RecipeError(*faults)
    return tuple(float(option.get(name, 1.0)) for name in names)


def _yaml_hint(name: str) -> str:
    return " YAML reads yes, no, on and off as booleans: quote them." if name in ("true", "false") else ""
