import pytest

from peft_bidora.data.columns import Columns
from peft_bidora.data.faults import name_of, row_faults

COLUMNS = Columns(("text",), "label", "fold")
GOOD: dict[str, object] = {"text": "a", "label": "x", "fold": 1}


def test_a_good_row_has_no_fault() -> None:
    assert list(row_faults(GOOD, COLUMNS)) == []


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("text", None, "no text in 'text'"),
        ("text", "", "an empty text in 'text'"),
        ("text", " \n\t", "an empty text in 'text'"),
        ("text", 12, "a number in 'text'"),
        ("text", ["a"], "a list in 'text'"),
        ("text", "a\ud800b", "half a surrogate pair in 'text'"),
        ("label", None, "no label in 'label'"),
        ("label", " ", "an empty label in 'label'"),
        ("label", 0.5, "a number that is no integer in 'label'"),
        ("label", float("nan"), "a number that is no integer in 'label'"),
        ("label", [1], "a list in 'label'"),
        ("label", {"a": 1}, "an object in 'label'"),
        ("label", b"x", "a bytes in 'label'"),
        ("fold", None, "no group in 'fold'"),
        ("fold", [1], "a list in 'fold'"),
    ],
)
def test_each_fault_is_named_with_its_column(column: str, value: object, what: str) -> None:
    (fault,) = row_faults({**GOOD, column: value}, COLUMNS)
    assert fault.what == what


def test_a_missing_key_is_no_value() -> None:
    faults = list(row_faults({}, Columns(("one", "two"), "label")))
    assert [fault.what for fault in faults] == ["no text in 'one'", "no text in 'two'", "no label in 'label'"]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("x", "x"),
        (" x", " x"),
        (1, "1"),
        (-1, "-1"),
        (1.0, "1"),
        (True, "true"),
        (False, "false"),
        (0.5, None),
        ([], None),
    ],
)
def test_labels_are_named_by_their_value(value: object, name: str | None) -> None:
    assert name_of(value) == name
