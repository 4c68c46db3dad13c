import io
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from peft_bidora.data import parquet_writer
from peft_bidora.data.parquet_writer import ParquetWriter
from peft_bidora.errors import DataError

ADDED: dict[str, Any] = {"predicted_label": "no", "probabilities": {"no": 0.75, "yes": 0.25}}


def written(*chunks: list[dict[str, Any]], schema: Any = None, added: dict[str, Any] | None = None) -> Any:
    file = io.BytesIO()
    writer = ParquetWriter(file, schema)
    for rows in chunks:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer.write(columns, rows, [ADDED if added is None else added] * len(rows))
    writer.close()
    return pyarrow.parquet.ParquetFile(file)


def test_probabilities_are_a_struct_and_rows_are_read_back() -> None:
    rows = [{"text": "a", "n": 1, "tags": ["O"]}, {"text": "b", "n": None, "tags": []}]
    table = written(rows, rows).read()
    assert table.to_pylist() == [{**row, **ADDED} for row in rows * 2]
    assert pyarrow.types.is_struct(table.schema.field("probabilities").type)


def test_columns_keep_the_types_of_the_source() -> None:
    kind = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    kinds = pyarrow.schema([("n", pyarrow.int16()), ("when", pyarrow.timestamp("ms")), ("kind", kind)])
    source = pyarrow.table({"n": [1], "when": [0], "kind": ["a"]}, schema=kinds)
    found = written(source.to_pylist(), schema=source.schema).read().drop_columns(list(ADDED))
    assert found.equals(source)


@pytest.mark.parametrize("late", [{"a": "x", "b": ["y"]}, {"a": 1.5, "b": [{"type": "PER", "start": 0}]}])
def test_values_that_come_late_in_a_row_group_give_their_column_its_type(late: dict[str, Any]) -> None:
    rows = [{"a": None, "b": []}, late, {"a": None, "b": []}]
    table = written(*([row] for row in rows), added={"y": 1}).read()
    assert table.to_pylist() == [{**row, "y": 1} for row in rows]


def test_fractions_may_follow_whole_numbers_and_keys_may_come_in_a_row_group() -> None:
    table = written([{"a": 1, "b": {"k": 1}}], [{"a": 1.5, "b": {"late": 1}}], added={"y": 1}).read()
    assert table.to_pylist()[0] == {"a": 1.0, "b": {"k": 1, "late": None}, "y": 1}
    assert table.to_pylist()[1] == {"a": 1.5, "b": {"k": None, "late": 1}, "y": 1}


def test_column_in_which_a_row_group_has_no_values_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_writer, "ROW_GROUP_BYTES", 1)
    table = written([{"a": None, "b": []}], [{"a": "x", "b": ["y"]}], added={"y": 1}).read()
    assert table.to_pylist() == [{"a": None, "b": [], "y": 1}, {"a": "x", "b": ["y"], "y": 1}]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([[{"a": 1}, {"a": "x"}]], r"values of 'a' cannot be written as one Parquet column \("),
        ([[{"a": 1}], [{"a": 1.5}]], r"values of 'a' .*\(double among values that were int64 so far"),
        ([[{"a": None}], [{"a": 5}]], r"values of 'a' .*\(int64 among values that were string so far"),
        ([[{"a": {"k": 1}}], [{"a": {"late": 1}}]], r"values of 'a' .*\(struct<late: int64> among"),
        ([[{"a": 2**70}]], r"values of 'a' cannot be written as one Parquet column"),
        ([[{"a": {}}]], r"cannot be written as Parquet"),
    ],
)
def test_values_of_no_one_type_are_refused(
    chunks: list[list[dict[str, Any]]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_writer, "ROW_GROUP_BYTES", 1)
    with pytest.raises(DataError, match=rf"{message}.*Write \.jsonl"):
        written(*chunks)


def test_integers_and_lacking_keys_fit_into_what_was() -> None:
    table = written([{"a": 1.5, "b": {"k": 1, "l": 2.5}}], [{"a": 2, "b": {"l": 3}}], added={"y": 1}).read()
    assert table.to_pylist()[1] == {"a": 2.0, "b": {"k": None, "l": 3.0}, "y": 1}


def test_many_chunks_share_a_row_group(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [[{"text": "x" * 100}] * 10] * 50
    assert written(*chunks).num_row_groups == 1
    monkeypatch.setattr(parquet_writer, "ROW_GROUP_BYTES", 10_000)
    file = written(*chunks)
    assert 2 < file.num_row_groups < 10
    assert file.metadata.num_rows == 500
