"""The methods and rates of a comparison, as they are typed."""

import re

from peft_bidora.errors import Faults, RecipeError

OUTSIDE_BRACKETS = r"(?![^\[{]*[\]}])"
# Of one method alone these would make its runs others than the reference's: other rows, or no pair.
SHARED = {
    *("output", "seed", "method", "model", "task", "select_by"),
    *(f"data.{key}" for key in ("train", "test", "test_fraction", "test_seed")),
    *(f"data.{key}" for key in ("selection", "selection_fraction", "group")),
}


def labels(text: str) -> list[str]:
    """Return the labels of a list with commas between; those within brackets part nothing."""
    return [label.strip() for label in re.split(rf",{OUTSIDE_BRACKETS}", text)]


def factors(text: str) -> list[float]:
    """Return the numbers of a list with commas between.

    Raises:
        RecipeError: a part is no number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--rates {text!r}: expected factors with commas between, such as 0.4,1,2.5.") from None


def overrides_of(label: str, faults: Faults) -> list[str] | None:
    """Return the `key=value` of a label, the method's first; None where there is a fault.

    Args:
        label: a method, then what of the recipe is otherwise for it, with blanks between.
        faults: to which what is wrong is added.
    """
    method, *own = re.split(rf"\s+{OUTSIDE_BRACKETS}", label.strip())
    if "=" in method:
        faults.add(RecipeError(f"--methods {label!r}: expected a method first, such as: bidora search.lower_steps=2."))
        return None
    for override in own:
        if override.partition("=")[0] in SHARED or override.startswith("data.fold"):
            faults.add(
                RecipeError(f"--methods {label!r}: {override} is of all methods. Leave it out, or set it for all.")
            )
            return None
    return [f"method={method}", *own]
