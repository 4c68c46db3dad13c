"""What can be wrong with a value of a row, in words."""

from typing import NamedTuple


class Fault(NamedTuple):
    """Say what a row has that it should not, and what to do; rows with the same fault are told of together.

    Args:
        what: what the row has.
        advice: what to do.
        found: the values or letters at fault, which may differ from row to row of the same fault.
    """

    what: str
    advice: str
    found: tuple[str, ...] = ()


def is_empty(value: object) -> bool:
    """Return whether a value is null or a blank string."""
    return value is None or (isinstance(value, str) and not value.strip())


def emptiness(value: object) -> str:
    """Return how an empty value is empty: `no` or `an empty`."""
    return "no" if value is None else "an empty"


def kind_of(value: object) -> str:
    """Return the type of a value in words."""
    if isinstance(value, float) and not value.is_integer():
        return "a number that is no integer"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return names.get(type(value), f"a {type(value).__name__}")
