import pytest

from peft_bidora.data.faults import Fault
from peft_bidora.data.fields import name_of, read_class, read_group, read_text

READERS = {"text": read_text, "label": read_class, "fold": read_group}


@pytest.mark.parametrize(("column", "value", "read"), [("text", "a", "a"), ("label", "x", "x"), ("fold", 1, "1")])
def test_a_good_value_is_read(column: str, value: object, read: str) -> None:
    assert READERS[column](value, column) == read


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("text", None, "no text in 'text'"),
        ("text", "", "an empty text in 'text'"),
        ("text", " \n\t", "an empty text in 'text'"),
        ("text", 12, "a number in 'text'"),
        ("text", ["a"], "a list in 'text'"),
        ("text", "a\ud800b", "half a surrogate pair in 'text'"),
        ("label", "a\ud800", "half a surrogate pair in 'label'"),
        ("fold", "a\ud800", "half a surrogate pair in 'fold'"),
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
    fault = READERS[column](value, column)
    assert isinstance(fault, Fault)
    assert fault.what == what


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
