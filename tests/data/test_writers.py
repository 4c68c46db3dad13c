import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_bidora.data.readers import read_csv, read_json_lines, read_tsv
from peft_bidora.data.writers import WRITERS, RowWriter
from peft_bidora.errors import DataError

ADDED: list[dict[str, Any]] = [{"predicted_label": "no", "probabilities": {"no": 0.75, "yes": 0.25}}]
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | CELLS


def written(suffix: str, *chunks: tuple[list[str], list[dict[str, Any]], list[dict[str, Any]]]) -> bytes:
    file = io.BytesIO()
    writer: RowWriter = WRITERS[suffix](file, None)
    for columns, rows, added in chunks:
        writer.write(columns, rows, added)
    writer.close()
    return file.getvalue()


def test_json_lines_keep_values_and_nest_what_is_added() -> None:
    row = {"text": "naïve", "n": 1, "list": [True, None, 1.5]}
    data = written(".jsonl", (["text", "n", "list"], [row], ADDED))
    assert data.count(b"\n") == 1
    assert "naïve".encode() in data
    assert json.loads(data) == {**row, **ADDED[0]}
    assert list(json.loads(data)) == ["text", "n", "list", "predicted_label", "probabilities"]


def test_json_lines_may_each_have_columns_of_their_own() -> None:
    first = (["a"], [{"a": 1}], [{"y": 0}])
    second = (["a", "b"], [{"b": 2}], [{"y": 1}])
    assert written(".jsonl", first, second) == b'{"a": 1, "y": 0}\n{"b": 2, "y": 1}\n'


def test_csv_has_a_column_for_the_probability_of_each_label() -> None:
    data = written(".csv", (["text", "n"], [{"text": "a,b", "n": 1}], ADDED))
    assert data == b'text,n,predicted_label,probability_no,probability_yes\n"a,b",1,no,0.75,0.25\n'


def test_tsv_is_cut_at_tabs() -> None:
    assert written(".tsv", (["a", "b"], [{"a": "1,2", "b": 3}], [{"y": 0.5}])) == b"a\tb\ty\n1,2\t3\t0.5\n"


def test_cells_hold_lists_objects_and_booleans_as_json_and_null_as_nothing() -> None:
    row = {"a": ["x", "y"], "b": {"k": None}, "c": True, "d": None}
    data = written(".tsv", (list(row), [row], [{"tags": ["O", "B-é"]}]))
    assert data.decode().splitlines()[1].split("\t") == [
        '"[""x"", ""y""]"', '"{""k"": null}"', "true", "", '"[""O"", ""B-é""]"',
    ]  # fmt: skip


def test_header_is_written_once_and_a_lacking_column_is_an_empty_cell() -> None:
    chunk = (["a", "b"], [{"a": 1}], [{"y": 0}])
    assert written(".csv", chunk, chunk) == b"a,b,y\n1,,0\n1,,0\n"


@given(st.lists(CELLS, min_size=2, max_size=2), st.sampled_from([".csv", ".tsv"]))
def test_cells_are_read_back_as_they_were(cells: list[str], suffix: str) -> None:
    row = dict(zip(("a", "b"), cells, strict=True))
    data = written(suffix, (["a", "b"], [row], [{"y": "z"}]))
    read = read_csv if suffix == ".csv" else read_tsv
    assert read("a.csv", data).rows == [{**row, "y": "z"}]


@given(st.dictionaries(CELLS, VALUES))
def test_json_lines_are_read_back_as_they_were(row: dict[str, Any]) -> None:
    row.pop("y", None)
    data = written(".jsonl", (list(row), [row], [{"y": 1}]))
    assert read_json_lines("a.jsonl", data).rows == [{**row, "y": 1}]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_column_that_is_there_already_is_never_written_over(suffix: str) -> None:
    with pytest.raises(DataError, match="have the column 'predicted_label', which a prediction adds"):
        written(suffix, (["text", "predicted_label"], [{"text": "a", "predicted_label": "b"}], ADDED))


def test_column_of_a_probability_may_be_there_already_too() -> None:
    with pytest.raises(DataError, match="have the column 'probability_no', which a prediction adds"):
        written(".csv", (["probability_no"], [{"probability_no": 1}], ADDED))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_column_that_comes_after_the_header_is_refused(suffix: str) -> None:
    first, second = (["a"], [{"a": 1}], [{"y": 0}]), (["a", "b"], [{"a": 1, "b": 2}], [{"y": 0}])
    with pytest.raises(DataError, match=r"1 column \('b'\) that the rows before them lack.*Write \.jsonl"):
        written(suffix, first, second)


def test_chunk_that_cannot_be_written_leaves_nothing_behind() -> None:
    file = io.BytesIO()
    writer = WRITERS[".csv"](file, None)
    writer.write(["a"], [{"a": "x"}], [{"y": 0}])
    with pytest.raises(DataError, match=r"half a surrogate pair.*Write \.jsonl"):
        writer.write(["a"], [{"a": "good"}, {"a": "\ud800"}], [{"y": 0}, {"y": 1}])
    assert file.getvalue() == b"a,y\nx,0\n"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("column", ["a", "\ud800"])
def test_half_a_surrogate_pair_is_for_json_alone(suffix: str, column: str) -> None:
    chunk = ([column], [{column: "\ud800"}], [{"y": 0}])
    with pytest.raises(DataError, match=r"half a surrogate pair.*Write \.jsonl"):
        written(suffix, chunk)
    assert json.loads(written(".jsonl", chunk)) == {column: "\ud800", "y": 0}
