import json
import math
from datetime import date, datetime, timezone
from decimal import Decimal

import pytest

from peft_bidora.data.values import as_cell, as_json
from peft_bidora.errors import DataError


def test_numbers_that_json_lacks_become_null() -> None:
    value = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1.5}
    assert json.loads(as_json(value)) == {"a": None, "b": [None, {"c": None}], "d": 1.5}


def test_half_a_surrogate_pair_is_escaped_and_comes_back() -> None:
    data = as_json({"a": "é\ud800"})
    assert data.isascii()
    assert json.loads(data) == {"a": "é\ud800"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2024, 5, 1, 12, tzinfo=timezone.utc), "2024-05-01T12:00:00+00:00"),
        (date(2024, 5, 1), "2024-05-01"),
        (Decimal("1.10"), "1.10"),
    ],
)
def test_types_of_parquet_are_written_as_text(value: object, text: str) -> None:
    assert json.loads(as_json({"a": value})) == {"a": text}
    assert as_cell(value) == text


@pytest.mark.parametrize("write", [as_json, as_cell])
def test_bytes_are_refused(write: object) -> None:
    with pytest.raises(DataError, match=r"a bytes, which text cannot hold\. Write \.parquet"):
        write(b"image")  # type: ignore[operator]


def test_numbers_are_written_in_full() -> None:
    assert [as_cell(value) for value in (1, 0.1 + 0.2, 1e-9)] == ["1", "0.30000000000000004", "1e-09"]
