import pytest

from peft_bidora.data.table import table_of_rows, unique_columns
from peft_bidora.errors import DataError


def test_rows_without_line_numbers_are_counted_from_one() -> None:
    table = table_of_rows("a.parquet", ["text"], [{"text": "a"}, {"text": "b"}], None)
    assert (table.lines, table.unit, table.columns) == ([1, 2], "row", ("text",))


def test_a_column_name_that_occurs_twice_is_named() -> None:
    assert unique_columns("a.csv", ["b", "a"]) == ("b", "a")
    with pytest.raises(DataError, match=r"a\.csv: .*'b' occurs more than once"):
        unique_columns("a.csv", ["b", "a", "b"])
