"""Write a value of a row as text: as JSON, or as a cell of a table."""

import json
import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from peft_bidora.errors import DataError

HALF_A_PAIR = "A row has half a surrogate pair, which no text can hold. Write .jsonl, where it is escaped."


def as_json(value: Any) -> bytes:
    """Return the JSON of a value in UTF-8; infinite numbers and NaN, which JSON lacks, become null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as it came
        return json.dumps(json.loads(text)).encode()


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
