"""Read one value of a row: `(value, column)` to what a task takes, or to what is wrong with it."""

import math
import re
from collections.abc import Callable
from typing import Any

from peft_bidora.data.faults import Fault, emptiness, is_empty, kind_of

FieldReader = Callable[[object, str], Any]
SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(value: object, column: str) -> str | Fault:
    """Return a string that is not blank."""
    if is_empty(value):
        return Fault(f"{emptiness(value)} text in {column!r}", "every row needs text. Remove or fill them.")
    if not isinstance(value, str):
        return Fault(f"{kind_of(value)} in {column!r}", "a text is a string. Convert them.")
    if SURROGATE.search(value):
        return Fault(f"half a surrogate pair in {column!r}", "that is no character. Write these texts again.")
    return value


def read_class(value: object, column: str) -> str | Fault:
    """Return the name of a class: a string, an integer (also written 1.0) or a boolean."""
    return _named("label", value, column)


def read_group(value: object, column: str) -> str | Fault:
    """Return the name of a group, by the rules of a class."""
    return _named("group", value, column)


def name_of(value: object) -> str | None:
    """Return the name of a label or group: `true` for True, `1` for 1 and 1.0; None for what can be neither."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value) if isinstance(value, (str, int)) else None


def _named(what: str, value: object, column: str) -> str | Fault:
    if is_empty(value):
        return Fault(f"{emptiness(value)} {what} in {column!r}", f"every row needs a {what}. Remove or fill them.")
    name = name_of(value)
    if name is None:
        fractional = what == "label" and isinstance(value, float) and math.isfinite(value)
        hint = " To predict numbers, set task=regression." if fractional else ""
        advice = f"a {what} is a string, an integer or a boolean. Convert them.{hint}"
        return Fault(f"{kind_of(value)} in {column!r}", advice)
    if SURROGATE.search(name):
        return Fault(f"half a surrogate pair in {column!r}", f"that is no character. Write these {what}s again.")
    return name
