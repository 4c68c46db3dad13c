from collections.abc import Iterator

import pytest

from peft_bidora.data.rows import NumberedRow, RowStream
from peft_bidora.errors import DataError


def stream(*rows: NumberedRow, columns: tuple[str, ...] | None = None) -> RowStream:
    return RowStream("a.jsonl", iter(rows), columns)


def test_table_has_the_numbers_and_the_columns_of_its_rows() -> None:
    table = stream((1, {"b": 1}), (3, {"a": 2, "b": 3})).table("digest")
    assert (table.rows, table.lines, table.columns) == ([{"b": 1}, {"a": 2, "b": 3}], [1, 3], ("b", "a"))
    assert (table.source, table.unit, table.sha256) == ("a.jsonl", "line", "digest")


def test_chunks_hold_the_rows_in_order_and_the_columns_so_far() -> None:
    chunks = list(stream(*((n, {"a": n} if n != 3 else {"b": n}) for n in range(1, 6))).chunks(2))
    assert [chunk.lines for chunk in chunks] == [[1, 2], [3, 4], [5]]
    assert [chunk.columns for chunk in chunks] == [("a",), ("a", "b"), ("a", "b")]
    assert all(chunk.sha256 is None for chunk in chunks)


def test_columns_of_a_header_stand_for_all_rows() -> None:
    (chunk,) = stream((2, {"a": "1"}), columns=("a", "z")).chunks(9)
    assert chunk.columns == ("a", "z")


def test_stream_is_read_as_far_as_it_is_asked() -> None:
    asked = []

    def rows() -> Iterator[NumberedRow]:
        for number in range(1, 100):
            asked.append(number)
            yield number, {"a": number}

    chunks = RowStream("a.jsonl", rows()).chunks(3)
    assert asked == []
    assert next(chunks).lines == [1, 2, 3]
    assert asked == [1, 2, 3]


def test_faults_of_a_chunk_are_reported_together_and_those_before_are_good() -> None:
    chunks = stream((1, {"a": 1}), (2, {"a": 1}), (3, "fault of line 3"), (4, "fault of line 4"), (5, {})).chunks(2)
    assert next(chunks).lines == [1, 2]
    with pytest.raises(DataError) as caught:
        next(chunks)
    assert caught.value.faults == ("fault of line 3", "fault of line 4")


def test_only_the_first_five_faults_are_shown_and_the_rest_is_counted() -> None:
    with pytest.raises(DataError) as caught:
        stream(*((n, f"fault {n}") for n in range(1, 9))).table(None)
    assert caught.value.faults == (*(f"fault {n}" for n in range(1, 6)), "a.jsonl: 3 more rows with such a fault.")
