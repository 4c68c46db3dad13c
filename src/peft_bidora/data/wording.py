"""The phrases that the messages of this room share."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SHOWN_NAMES = 20
SHOWN_PLACES = 5
SEPARATORS = ";\t|"


def listed(names: Iterable[str]) -> str:
    """Return the names in quotes: `'text', 'label'`; a long list is cut short and counted."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:SHOWN_NAMES]) + _and_more(len(quoted) - SHOWN_NAMES)


def listed_columns(columns: Sequence[str]) -> str:
    """Return the names in quotes; a single one that holds a separator is told to be several."""
    separator = next((mark for mark in SEPARATORS if mark in columns[0]), None) if len(columns) == 1 else None
    hint = f" (cells are separated by commas in a .csv, by tabs in a .tsv, and not by {separator!r})"
    return listed(columns) + (hint if separator else "")


def places(unit: str, numbers: Sequence[int]) -> str:
    """Return where in a file something stands: `line 4`, or `lines 4, 9, 17, 20, 31 and 8 more`."""
    shown = ", ".join(map(str, numbers[:SHOWN_PLACES]))
    return f"{_units(unit, len(numbers))} {shown}{_and_more(len(numbers) - SHOWN_PLACES)}"


def counted(count: int, unit: str) -> str:
    """Return `1 row` or `3 rows`."""
    return f"{count} {_units(unit, count)}"


def rows_have(count: int) -> str:
    """Return `1 row has` or `3 rows have`."""
    return f"{counted(count, 'row')} {verb(count, 'has', 'have')}"


def verb(count: int, one: str, many: str) -> str:
    """Return the verb that agrees with a count."""
    return one if count == 1 else many


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'label'?` for the nearest known name, or nothing if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _units(unit: str, count: int) -> str:
    return unit if count == 1 else f"{unit}s"


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def shown(number: float | None) -> str:
    """Return a number with four digits; a file holds null for one that is not finite."""
    return "not finite" if number is None else f"{number:.4f}"
