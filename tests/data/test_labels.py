from collections.abc import Callable
from dataclasses import replace

import pytest

from peft_bidora.data.examples import Examples
from peft_bidora.data.labels import check_labels_known, label_names
from peft_bidora.errors import DataError

Build = Callable[..., Examples]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "-1", "9"], ["-1", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["b", "B", "a"], ["B", "a", "b"]),
        (["1", "01"], ["01", "1"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),
    ],
    ids=["integers", "mixed", "text", "same number", "too long for a number"],
)
def test_classes_are_sorted_by_number_only_if_all_are_integers(
    build: Build, labels: list[str], names: list[str]
) -> None:
    assert label_names(build(labels)) == names


def test_a_single_class_is_refused(build: Build) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl has a single class 'x'; expected at least two"):
        label_names(build(["x", "x"]))


def test_examples_without_labels_have_no_classes(build: Build) -> None:
    with pytest.raises(DataError, match="has no labels"):
        label_names(replace(build(["x"]), labels=None))


def test_classes_beyond_those_of_the_train_rows_are_named_with_count_and_lines(build: Build) -> None:
    other = replace(build(["a", "c", "b", "d", "c"]), source="test.jsonl")
    with pytest.raises(DataError) as caught:
        check_labels_known(["a", "b"], other)
    assert str(caught.value) == (
        "test.jsonl: 3 rows have a class that the train rows lack: 'c', 'd' (lines 2, 4, 5). The train rows have "
        "'a', 'b'. Rename or remove these rows, or add such rows to the train file."
    )


def test_known_classes_and_missing_labels_pass(build: Build) -> None:
    check_labels_known(["a", "b"], build(["b", "b"]))
    check_labels_known(["a", "b"], replace(build(["c"]), labels=None))
