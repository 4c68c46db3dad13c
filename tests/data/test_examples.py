from collections.abc import Callable

import pytest

from peft_bidora.data import examples as module
from peft_bidora.data.columns import Columns, Layout
from peft_bidora.data.examples import Examples, read_examples
from peft_bidora.data.faults import Fault
from peft_bidora.data.table import Row, Table
from peft_bidora.errors import DataError

COLUMNS = Columns(("text",), "label")


def table(*rows: Row) -> Table:
    """Return a table whose rows stand on every second line, from line 2 on."""
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table("train.jsonl", columns, list(rows), [2 * i for i in range(1, len(rows) + 1)], "line", None)


def test_rows_become_parallel_lists_of_texts_labels_and_groups() -> None:
    rows: list[Row] = [
        {"a": "x", "b": " y ", "label": 1, "fold": True},
        {"a": "z", "b": "w", "label": 0.0, "fold": "f"},
    ]
    examples = read_examples(table(*rows), Columns(("b", "a"), "label", "fold"))
    assert examples.texts == [(" y ", "x"), ("w", "z")]
    assert (examples.labels, examples.groups) == (["1", "0"], ["true", "f"])
    assert (examples.rows, examples.lines, examples.unit) == (rows, [2, 4], "line")
    assert (examples.source, len(examples)) == ("train.jsonl", 2)


def test_all_kinds_of_faults_are_reported_at_once_with_counts_and_first_lines() -> None:
    good: Row = {"text": "a", "label": "x"}
    rows: list[Row] = [{**good, "text": " "}] * 7 + [good, {"text": 3, "label": None}, {"text": "a", "label": 0.5}]
    with pytest.raises(DataError) as caught:
        read_examples(table(*rows), COLUMNS)
    assert caught.value.faults == (
        "train.jsonl: 7 rows have an empty text in 'text' (lines 2, 4, 6, 8, 10 and 2 more); "
        "every row needs text. Remove or fill them.",
        "train.jsonl: 1 row has a number in 'text' (line 18); a text is a string. Convert them.",
        "train.jsonl: 1 row has no label in 'label' (line 18); every row needs a label. Remove or fill them.",
        "train.jsonl: 1 row has a number that is no integer in 'label' (line 20); "
        "a label is a string, an integer or a boolean. Convert them. To predict numbers, set task=regression.",
    )


def test_values_at_fault_are_listed_with_the_rows_of_their_fault() -> None:
    def read(value: object, column: str) -> object:
        return Fault("a digit", "no digits.", (str(value),)) if isinstance(value, int) else value

    rows: list[Row] = [{"text": 7, "label": "x"}, {"text": 3, "label": "x"}, {"text": 3, "label": "x"}]
    with pytest.raises(DataError) as caught:
        read_examples(table(*rows), COLUMNS, Layout(text=read))
    assert caught.value.faults == ("train.jsonl: 3 rows have a digit: '3', '7' (lines 2, 4, 6); no digits.",)


def test_rows_without_line_numbers_are_named_as_rows() -> None:
    counted = Table("a.parquet", ("text", "label"), [{"text": None, "label": 1}], [1], "row", None)
    with pytest.raises(DataError, match=r"a\.parquet: 1 row has no text in 'text' \(row 1\)"):
        read_examples(counted, COLUMNS)


def test_missing_columns_of_a_second_file_are_reported() -> None:
    with pytest.raises(
        DataError, match=r"data\.text names the column 'text', but train\.jsonl has 'sentence', 'label'"
    ):
        read_examples(table({"sentence": "a", "label": 1}), COLUMNS)


def test_required_label_column_must_be_known() -> None:
    with pytest.raises(DataError, match=r"needs a label column; it has 'text', 'mood'.*Set data\.label"):
        read_examples(table({"text": "a", "mood": 1}), Columns(("text",), None))
    with pytest.raises(DataError, match=r"data\.label names the column 'label', but train\.jsonl has 'text'"):
        read_examples(table({"text": "a"}), COLUMNS)


@pytest.mark.parametrize("row", [{"text": "a"}, {"text": "a", "label": None}, {"text": "a", "label": ""}])
def test_labels_that_are_not_required_may_be_missing_or_wholly_empty(row: Row) -> None:
    examples = read_examples(table(row, row), COLUMNS, require_labels=False)
    assert examples.labels is None
    with pytest.raises(DataError, match=r"train\.jsonl has no labels, but they are needed here"):
        examples.required_labels()


def test_labels_that_are_not_required_are_still_checked_where_there_are_some() -> None:
    full: Row = {"text": "a", "label": 1}
    assert read_examples(table(full), COLUMNS, require_labels=False).labels == ["1"]
    with pytest.raises(DataError, match=r"1 row has no label in 'label' \(line 4\)"):
        read_examples(table(full, {"text": "a", "label": None}), COLUMNS, require_labels=False)


def test_take_keeps_every_list_parallel(build: Callable[..., Examples]) -> None:
    taken = build(["x", "y", "z"], ["a", "b", "c"], ["f", "g", "h"]).take([2, 0])
    assert (taken.texts, taken.labels, taken.groups) == ([("c",), ("a",)], ["z", "x"], ["h", "f"])
    assert (taken.rows, taken.lines, len(taken)) == ([{"number": 2}, {"number": 0}], [3, 1], 2)


def test_chunks_are_the_rows_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    whole = Examples(
        texts=[(str(row),) for row in range(7)],
        labels=list("abcdefg"),
        groups=None,
        rows=[{"n": row} for row in range(7)],
        source="rows",
        lines=list(range(1, 8)),
        unit="row",
    )
    parts = list(whole.chunks())
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [row for part in parts for row in part.rows] == whole.rows
    assert [label for part in parts for label in part.labels or []] == whole.labels
