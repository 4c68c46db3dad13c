from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peft_bidora.data.examples import Examples
from peft_bidora.data.split import make_splits
from peft_bidora.errors import DataError, SplitError

Build = Callable[..., Examples]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"upper_fraction": 0.01},
            r"^data\.upper_fraction=0\.01 of 40 rows leaves 0 rows for the upper split; "
            r"it needs at least one row a class \(3\)\. Raise data\.upper_fraction to 0\.5 or add rows\.$",
        ),
        (
            {"upper_fraction": 0.1},
            r"leaves 4 rows for the upper split, 0 of the class 'c' \(which has 2 rows\); "
            r"it needs at least one row a class \(3\)\. Raise data\.upper_fraction to 0\.5 or add rows\.$",
        ),
        (
            {"upper_fraction": 0.9},
            r"leaves 4 rows for the lower split, 0 of the class 'c' .*Lower data\.upper_fraction or add rows\.$",
        ),
        (
            {"selection_fraction": 0.1},
            r"^data\.selection_fraction=0\.1 of 40 rows leaves 4 rows for the selection split, 0 of the class 'c'"
            r".*Raise data\.selection_fraction to 0\.5 or add rows\.$",
        ),
        (
            {"selection_fraction": 0.9},
            r"leaves 4 rows for training, 0 of the class 'c' .*Lower data\.selection_fraction or add rows\.$",
        ),
        (
            {"test_fraction": 0.01},
            r"^data\.test_fraction=0\.01 of 40 rows leaves 0 rows for the test split; it needs at least one\."
            r" Raise data\.test_fraction or add rows\.$",
        ),
        (
            {"test_fraction": 0.9},
            r"^data\.test_fraction=0\.9 of 40 rows leaves 4 rows for training, 0 of the class 'c'",
        ),
        (
            {"max_train_rows": 20},
            r"^data\.max_train_rows=20 of 40 rows leaves 20 rows for the lower and upper splits, 1 of the class 'c' "
            r"\(which has 2 rows\); it needs at least two rows a class \(6\)\. Raise data\.max_train_rows to 40\.$",
        ),
    ],
)
def test_a_cut_that_leaves_out_a_class_says_how_many_rows_are_needed(
    build: Build, options: dict[str, Any], message: str
) -> None:
    examples = build(["a"] * 19 + ["b"] * 19 + ["c"] * 2)
    with pytest.raises(SplitError, match=message):
        make_splits(examples, **({"selection_fraction": 0.0, "upper_fraction": 0.0, "seed": 0} | options))


def test_the_test_split_alone_may_lack_a_class(build: Build) -> None:
    examples = build(["a"] * 19 + ["b"] * 19 + ["c"] * 2)
    splits = make_splits(examples, test_fraction=0.1, selection_fraction=0, upper_fraction=0, seed=0)
    assert sorted(examples.take(splits.test).required_labels()) == ["a", "a", "b", "b"]


def test_the_limit_that_is_advised_is_enough(build: Build) -> None:
    examples = build(["a"] * 90 + ["b"] * 7)
    options: dict[str, Any] = {"selection_fraction": 0.0, "upper_fraction": 0.5, "seed": 0}
    with pytest.raises(SplitError, match=r"Raise data\.max_train_rows to 28\."):
        make_splits(examples, **options, max_train_rows=10)
    lower = examples.take(make_splits(examples, **options, max_train_rows=28).lower)
    assert lower.required_labels().count("b") == 1


def test_the_fraction_that_is_advised_is_enough(build: Build) -> None:
    examples = build(["a"] * 90 + ["b"] * 7, [*(str(row // 2) for row in range(90)), *"tuvwxyz"])
    options: dict[str, Any] = {"upper_fraction": 0.2, "seed": 0}
    with pytest.raises(SplitError, match=r"0 of the class 'b'.*Raise data\.selection_fraction to 0\.15 or add rows"):
        make_splits(examples, **options, selection_fraction=0.05)
    selection = examples.take(make_splits(examples, **options, selection_fraction=0.15).selection)
    assert selection.required_labels().count("b") == 1


def test_no_fraction_is_advised_where_groups_decide(build: Build) -> None:
    examples = build(["a"] * 90 + ["b"] * 6, [*map(str, range(90)), *"wwwxxx"])
    with pytest.raises(SplitError, match=r"Raise data\.selection_fraction or add rows\.$"):
        make_splits(examples, selection_fraction=0.2, upper_fraction=0.0, seed=0)


def test_a_class_of_one_row_needs_more_rows_and_no_higher_limit(build: Build) -> None:
    message = r"1 of the class 'b' \(which has 1 row\).*Add rows of 'b', or leave it out\.$"
    with pytest.raises(SplitError, match=message):
        make_splits(build(["a"] * 9 + ["b"]), selection_fraction=0, upper_fraction=0.5, max_train_rows=9, seed=0)


@pytest.mark.parametrize("option", ["test_fraction", "selection_fraction", "upper_fraction"])
def test_classes_of_one_row_are_cured_by_rows_alone(build: Build, option: str) -> None:
    examples = build(["a"] * 20 + ["b"] * 20 + ["c", "d"])
    options: dict[str, Any] = {"selection_fraction": 0.0, "upper_fraction": 0.0, "seed": 0, option: 0.5}
    with pytest.raises(SplitError, match=r"\(4\)\. Add rows of 'c', 'd', or leave them out\.$"):
        make_splits(examples, **options)


def test_an_upper_split_too_small_under_a_limit_is_cured_by_the_limit(build: Build) -> None:
    with pytest.raises(
        SplitError, match=r"of 10 rows leaves 0 rows.*Raise data\.upper_fraction to 0\.2 or raise data\.max_train"
    ):
        make_splits(build(["a", "b"] * 50), selection_fraction=0, upper_fraction=0.01, max_train_rows=10, seed=0)


def test_a_class_that_is_a_single_group_is_named_as_such(build: Build) -> None:
    examples = build(["a"] * 10 + ["b"] * 10, [str(i) for i in range(10)] + ["same"] * 10)
    with pytest.raises(SplitError, match=r"0 of the class 'b' \(which has 10 rows in 1 group\)"):
        make_splits(examples, selection_fraction=0, upper_fraction=0.5, seed=0)


def test_all_options_out_of_range_are_named_at_once(build: Build) -> None:
    with pytest.raises(SplitError) as caught:
        make_splits(
            build(["a", "b"]),
            test_fraction=-0.1,
            selection_fraction=1.0,
            upper_fraction=float("nan"),
            max_train_rows=0,
            seed=-1,
        )
    keys = [
        "data.test_fraction=-0.1",
        "data.selection_fraction=1.0",
        "data.upper_fraction=nan",
        "data.max_train_rows=0",
        "seed=-1",
    ]
    assert [fault.split(":")[0] for fault in caught.value.faults] == keys


def test_rows_without_labels_cannot_be_split(build: Build) -> None:
    with pytest.raises(DataError, match="has no labels"):
        make_splits(replace(build(["a"]), labels=None), selection_fraction=0, upper_fraction=0, seed=0)
