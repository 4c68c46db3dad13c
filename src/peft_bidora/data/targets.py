"""Read a label that is not one class: a number, or a list of classes."""

import math
import re
from decimal import Decimal

from peft_bidora.data.faults import Fault, emptiness, is_empty, kind_of
from peft_bidora.data.fields import SURROGATE, name_of, read_class

# What Python's float() takes beyond this (nan, inf, 1_000) is no number in a data file.
NUMERAL = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
SHOWN_CHARACTERS = 20


def read_number(value: object, column: str) -> float | Fault:
    """Return a finite number: a number, or a text that is written as one, as every cell of CSV is."""
    if is_empty(value):
        return Fault(f"{emptiness(value)} number in {column!r}", "every row needs a number. Remove or fill them.")
    if isinstance(value, str) and not NUMERAL.fullmatch(value):
        return Fault(
            f"a text that is no number in {column!r}",
            "a number is written like -2.5 or 1e-3. Correct them; if they are classes, set"
            " task=sequence-classification.",
            (_shortened(value),),
        )
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return Fault(f"{kind_of(value)} in {column!r}", "a regression learns numbers. Convert them.")
    number = _as_float(value)
    if not math.isfinite(number):
        return Fault(
            f"a number that is not finite in {column!r}",
            "a regression learns finite numbers. Remove or correct them.",
            (_shortened(str(number)),),
        )
    return number


def read_classes(value: object, column: str) -> tuple[str, ...] | Fault:
    """Return the names of the classes of a row, each once, in their order; a row of none has an empty list."""
    if is_empty(value):
        return Fault(
            f"{emptiness(value)} label in {column!r}",
            "every row needs a list of labels; one of none has an empty list. Remove or fill them.",
        )
    if not isinstance(value, list | tuple):
        return Fault(
            f"{kind_of(value)} in {column!r}",
            'with classification.multi_label a label is a list such as ["a", "b"], which JSON Lines, JSON and Parquet'
            " can hold. Convert them, or set classification.multi_label=false.",
        )
    names = [None if is_empty(item) else name_of(item) for item in value]
    found = [name for name in names if name is not None]
    if len(found) < len(names):
        return Fault(
            f"a list with something else than labels in {column!r}",
            "each of its items is a string, an integer or a boolean. Convert them.",
        )
    if any(SURROGATE.search(name) for name in found):
        return Fault(f"half a surrogate pair in {column!r}", "that is no character. Write these labels again.")
    return tuple(dict.fromkeys(found))


def read_class_or_classes(value: object, column: str) -> str | tuple[str, ...] | Fault:
    """Return what `read_classes` makes of a list, and `read_class` of all else."""
    return read_classes(value, column) if isinstance(value, list | tuple) else read_class(value, column)


def _as_float(value: str | int | float | Decimal) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf
    except ValueError:  # a signalling NaN
        return math.nan


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
