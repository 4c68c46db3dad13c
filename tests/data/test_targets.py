"""Labels that are numbers or lists of classes."""

from decimal import Decimal

import pytest

from peft_bidora.data.faults import Fault
from peft_bidora.data.targets import read_class_or_classes, read_classes, read_number


@pytest.mark.parametrize(
    ("value", "number"),
    [(2, 2.0), (-0.5, -0.5), ("3.25", 3.25), (" -1e-3 ", -0.001), (".5", 0.5), ("7.", 7.0), (Decimal("1.5"), 1.5)],
)
def test_a_number_or_its_text_is_read(value: object, number: float) -> None:
    assert read_number(value, "y") == number


@pytest.mark.parametrize(
    ("value", "what", "found"),
    [
        (None, "no number in 'y'", ()),
        ("", "an empty number in 'y'", ()),
        (float("nan"), "a number that is not finite in 'y'", ("nan",)),
        (float("-inf"), "a number that is not finite in 'y'", ("-inf",)),
        (10**400, "a number that is not finite in 'y'", ("inf",)),
        ("1e999", "a number that is not finite in 'y'", ("inf",)),
        (Decimal("sNaN"), "a number that is not finite in 'y'", ("nan",)),
        ("nan", "a text that is no number in 'y'", ("nan",)),
        ("inf", "a text that is no number in 'y'", ("inf",)),
        ("1_000", "a text that is no number in 'y'", ("1_000",)),
        ("2,5", "a text that is no number in 'y'", ("2,5",)),
        ("\u0661", "a text that is no number in 'y'", ("\u0661",)),
        ("good" * 9, "a text that is no number in 'y'", ("goodgoodgoodgoodgood…",)),
        (True, "a boolean in 'y'", ()),
        ([1.0], "a list in 'y'", ()),
    ],
)
def test_what_is_no_finite_number_is_a_fault(value: object, what: str, found: tuple[str, ...]) -> None:
    fault = read_number(value, "y")
    assert isinstance(fault, Fault)
    assert (fault.what, fault.found) == (what, found)


@pytest.mark.parametrize(
    ("value", "names"), [(["b", "a"], ("b", "a")), ([2, 1.0, True], ("2", "1", "true")), ([], ()), (["a", "a"], ("a",))]
)
def test_a_list_of_classes_keeps_its_order_and_each_once(value: object, names: tuple[str, ...]) -> None:
    assert read_classes(value, "y") == names


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "no label in 'y'"),
        (" ", "an empty label in 'y'"),
        ("a", "a string in 'y'"),
        (1, "a number in 'y'"),
        ([None], "a list with something else than labels in 'y'"),
        (["a", ""], "a list with something else than labels in 'y'"),
        ([0.5], "a list with something else than labels in 'y'"),
        ([["a"]], "a list with something else than labels in 'y'"),
    ],
)
def test_what_is_no_list_of_classes_is_a_fault(value: object, what: str) -> None:
    fault = read_classes(value, "y")
    assert isinstance(fault, Fault)
    assert fault.what == what


def test_lists_and_single_classes_are_told_apart() -> None:
    assert [read_class_or_classes(value, "y") for value in (["a"], "a", 1)] == [("a",), "a", "1"]


def test_class_with_half_a_surrogate_pair_is_at_fault() -> None:
    fault = read_classes(["a", "b\ud800"], "y")
    assert isinstance(fault, Fault)
    assert fault.what == "half a surrogate pair in 'y'"
