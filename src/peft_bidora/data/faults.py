"""Find what is wrong with one row of a classification table."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from peft_bidora.data.columns import Columns
from peft_bidora.data.table import Row

SURROGATE = re.compile("[\ud800-\udfff]")


class Fault(NamedTuple):
    """Say what a row has that it should not, and what to do; rows with the same fault have equal ones."""

    what: str
    advice: str


def row_faults(row: Row, columns: Columns) -> Iterator[Fault]:
    """Yield each fault of the row's texts, label and group."""
    for column in columns.text:
        yield from _text_faults(row.get(column), column)
    for key, optional in (("label", columns.label), ("group", columns.group)):
        if optional is not None:
            yield from _name_faults(row.get(optional), key, optional)


def is_empty(value: object) -> bool:
    """Return whether a value is null or a blank string."""
    return value is None or (isinstance(value, str) and not value.strip())


def name_of(value: object) -> str | None:
    """Return the name of a label or group: `true` for True, `1` for 1 and 1.0; None for what can be neither."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value) if isinstance(value, (str, int)) else None


def _text_faults(value: object, column: str) -> Iterator[Fault]:
    if is_empty(value):
        yield Fault(f"{_emptiness(value)} text in {column!r}", "every row needs text. Remove or fill them.")
    elif not isinstance(value, str):
        yield Fault(f"{_kind(value)} in {column!r}", "a text is a string. Convert them.")
    elif SURROGATE.search(value):
        yield Fault(f"half a surrogate pair in {column!r}", "that is no character. Write these texts again.")


def _name_faults(value: object, key: str, column: str) -> Iterator[Fault]:
    if is_empty(value):
        yield Fault(f"{_emptiness(value)} {key} in {column!r}", f"every row needs a {key}. Remove or fill them.")
    elif name_of(value) is None:
        yield Fault(f"{_kind(value)} in {column!r}", f"a {key} is a string, an integer or a boolean. Convert them.")


def _emptiness(value: object) -> str:
    return "no" if value is None else "an empty"


def _kind(value: object) -> str:
    if isinstance(value, float) and not value.is_integer():
        return "a number that is no integer"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
