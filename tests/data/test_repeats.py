from collections.abc import Callable

from peft_bidora.data.examples import Examples
from peft_bidora.data.repeats import conflicting, duplicates, overlap

Build = Callable[..., Examples]


def test_overlap_counts_rows_of_the_second_whose_stripped_text_is_in_the_first(build: Build) -> None:
    first, second = build(["x"] * 3, ["a", "b ", "B"]), build(["x"] * 4, ["a", "a", " b", "c"])
    assert overlap([first], second) == 3
    assert overlap([second], first) == 2


def test_a_row_that_stands_in_both_training_splits_is_counted_once(build: Build) -> None:
    assert overlap([build(["x"], ["a"]), build(["y"], ["a"])], build(["x"], ["a"])) == 1


def test_a_pair_overlaps_only_as_a_whole_and_in_order(build: Build) -> None:
    first = build(["x"], [("a", "b")])
    assert overlap([first], build(["x"] * 4, [("a", "b"), ("b", "a"), ("a", "c"), ("ab", "")])) == 1


def test_duplicates_count_every_row_after_the_first(build: Build) -> None:
    assert duplicates(build(["x"] * 6, ["a", "b", "a", " a", "b", "c"])) == 3


def test_conflicting_counts_texts_and_not_rows(build: Build) -> None:
    examples = build(["x", "y", "x", "y", "y", "z"], ["a", "a ", "a", "b", "b", "c"])
    assert conflicting(examples) == 1
