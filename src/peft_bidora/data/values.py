"""Write a value of a row as text: as JSON, or as a cell of a table."""

import json
import math
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from peft_bidora.errors import DataError

HALF_A_PAIR = "A row has half a surrogate pair, which no text can hold. Write .jsonl, where it is escaped."


def as_json(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> bytes:
    """Return the JSON of a value in UTF-8; infinite numbers and NaN, which JSON lacks, become null.

    Args:
        value: of types that JSON has, or that `default` makes into such.
        indent: blanks for each level; None for a single line.
        default: takes a value of another type; None for what occurs in Parquet files.

    Raises:
        DataError: a type that text cannot hold.
    """
    dump = partial(json.dumps, indent=indent, allow_nan=False, default=default or _plain)
    try:
        text = dump(value, ensure_ascii=False)
    except ValueError:
        value = _finite(value)
        text = dump(value, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as it came
        return dump(value).encode()


def _plain(value: object) -> object:
    """Return what JSON has for a value of another type, as it occurs in Parquet files."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise DataError(f"A row has a {type(value).__name__}, which text cannot hold. Write .parquet, or leave it out.")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list | tuple | bool):
        return as_json(value).decode()
    return str(value if isinstance(value, int | float) else _plain(value))
