import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_bidora.data.examples import Examples
from peft_bidora.data.split import Splits, make_splits, split_hash
from peft_bidora.errors import SplitError

Build = Callable[..., Examples]
FRACTIONS = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.4])
# Classes so large that no cut can leave one of them out.
LABELS = st.lists(st.sampled_from("abc"), max_size=60).map(lambda drawn: drawn + ["a"] * 40 + ["b"] * 40 + ["c"] * 40)


def parts(splits: Splits) -> list[list[int]]:
    return [splits.lower, splits.upper, splits.selection, splits.test]


def classes(examples: Examples, indices: list[int]) -> Counter[str]:
    return Counter(examples.required_labels()[i] for i in indices)


@given(LABELS, FRACTIONS, FRACTIONS, FRACTIONS, st.none() | st.integers(40, 200), st.integers(0, 2**32))
def test_splits_are_disjoint_and_complete_and_off_by_at_most_one_a_class(
    build: Build, labels: list[str], test: float, selection: float, upper: float, limit: int | None, seed: int
) -> None:
    examples = build(labels)
    options: dict[str, Any] = {"test_fraction": test, "selection_fraction": selection, "upper_fraction": upper}
    splits = make_splits(examples, **options, max_train_rows=limit, seed=seed)
    rows = [row for part in parts(splits) for row in part]
    assert len(rows) == len(set(rows))
    assert all(first < second for part in parts(splits) for first, second in pairwise(part))
    left = len(labels) - len(splits.test) - len(splits.selection)
    assert len(splits.lower) + len(splits.upper) == min(left, limit or left)

    pool = Counter(labels)
    for fraction, part in ((test, splits.test), (selection, splits.selection)):
        assert_in_proportion(classes(examples, part), pool, fraction)
        pool -= classes(examples, part)
    trained = classes(examples, splits.lower) + classes(examples, splits.upper)
    assert_in_proportion(trained, pool, trained.total() / pool.total())
    assert_in_proportion(classes(examples, splits.upper), trained, upper)


def assert_in_proportion(counts: Counter[str], pool: Counter[str], fraction: float) -> None:
    for name, size in pool.items():
        # The tolerance is for the float product; whole quotas stay whole.
        assert math.floor(fraction * size + 1e-9) <= counts[name] <= math.ceil(fraction * size - 1e-9)
    # Half a row is the rounding of the total.
    assert abs(counts.total() - fraction * pool.total()) <= 0.5 + 1e-9


@given(st.data(), st.integers(0, 2**32))
def test_groups_are_never_torn(build: Build, data: st.DataObject, seed: int) -> None:
    labels = ["a", "b"] * 100
    groups = [str(data.draw(st.integers(0, 60))) for _ in range(20)] + [str(i) for i in range(180)]
    examples = build(labels, groups=groups)
    splits = make_splits(examples, test_fraction=0.2, selection_fraction=0.2, upper_fraction=0.3, seed=seed)
    held = [{groups[i] for i in part} for part in parts(splits)]
    assert sum(map(len, held)) == len(set().union(*held)) == len(set(groups))


@given(st.integers(0, 2**32))
def test_without_a_group_column_equal_texts_are_a_group(build: Build, seed: int) -> None:
    texts = [(f"{i // 2} ", "x") if i % 2 else (f"{i // 2}", " x") for i in range(100)]
    splits = make_splits(build(["a", "b"] * 50, texts), selection_fraction=0.2, upper_fraction=0.2, seed=seed)
    held = [{i // 2 for i in part} for part in parts(splits)]
    assert sum(map(len, held)) == 50


def test_pairs_that_differ_in_one_text_are_no_group(build: Build) -> None:
    texts = [("same", str(i)) for i in range(20)]
    splits = make_splits(build(["a", "b"] * 10, texts), selection_fraction=0.2, upper_fraction=0.25, seed=0)
    assert [len(part) for part in parts(splits)] == [12, 4, 4, 0]


def test_a_group_column_replaces_the_grouping_by_text(build: Build) -> None:
    examples = build(["a", "b"] * 10, ["same"] * 20, [str(i) for i in range(20)])
    splits = make_splits(examples, selection_fraction=0.2, upper_fraction=0.25, seed=0)
    assert [len(part) for part in parts(splits)] == [12, 4, 4, 0]


def test_same_seed_gives_the_same_splits_and_another_seed_others(build: Build) -> None:
    examples = build(["a", "b"] * 100)
    options: dict[str, Any] = {"test_fraction": 0.2, "selection_fraction": 0.2, "upper_fraction": 0.2}
    assert make_splits(examples, **options, seed=3) == make_splits(examples, **options, seed=3)
    first, second = make_splits(examples, **options, seed=3), make_splits(examples, **options, seed=4)
    assert all(one != other for one, other in zip(parts(first), parts(second), strict=True))


def test_test_seed_draws_the_test_rows_whatever_the_seed(build: Build) -> None:
    examples = build(["a", "b"] * 100)
    options: dict[str, Any] = {"test_fraction": 0.2, "selection_fraction": 0.2, "upper_fraction": 0.2}
    first, second = (make_splits(examples, **options, seed=seed, test_seed=7) for seed in (3, 4))
    assert first.test == second.test == make_splits(examples, **options, seed=7).test
    assert all(one != other for one, other in zip(parts(first)[:3], parts(second)[:3], strict=True))


def test_options_of_a_later_cut_move_no_row_of_an_earlier_one(build: Build) -> None:
    examples = build(["a", "b"] * 100)
    base: dict[str, Any] = {"test_fraction": 0.2, "selection_fraction": 0.2, "upper_fraction": 0.2, "seed": 1}
    splits = make_splits(examples, **base)
    for change in ({"upper_fraction": 0.4}, {"upper_fraction": 0.0}, {"max_train_rows": 50}):
        changed = make_splits(examples, **(base | change))
        assert (changed.test, changed.selection) == (splits.test, splits.selection)
    assert make_splits(examples, **(base | {"selection_fraction": 0.0})).test == splits.test
    small = [make_splits(examples, **base | {"max_train_rows": 50, "upper_fraction": upper}) for upper in (0.2, 0.4)]
    assert sorted(small[0].lower + small[0].upper) == sorted(small[1].lower + small[1].upper)


def test_cuts_draw_independently_of_each_other(build: Build) -> None:
    # Were one seed used for two cuts, the rows held out of equally large pools would stand at the same positions.
    examples = build(["a", "b"] * 100)
    test = make_splits(examples, test_fraction=0.2, selection_fraction=0.0, upper_fraction=0.0, seed=0).test
    selection = make_splits(examples, selection_fraction=0.2, upper_fraction=0.0, seed=0).selection
    upper = make_splits(examples, selection_fraction=0.0, upper_fraction=0.2, seed=0).upper
    sample = make_splits(examples, selection_fraction=0.0, upper_fraction=0.0, max_train_rows=40, seed=0).lower
    assert len({tuple(part) for part in (test, selection, upper, sample)}) == 4


def test_fractions_of_zero_leave_every_row_to_the_lower_level(build: Build) -> None:
    splits = make_splits(build(["a", "b", "b"]), selection_fraction=0, upper_fraction=0, seed=0)
    assert parts(splits) == [[0, 1, 2], [], [], []]


def test_fractions_are_of_the_rows_that_are_left(build: Build) -> None:
    splits = make_splits(
        build(["a", "b"] * 100), test_fraction=0.5, selection_fraction=0.2, upper_fraction=0.25, seed=0
    )
    assert [len(part) for part in parts(splits)] == [60, 20, 20, 100]


def test_limit_beyond_the_rows_changes_nothing(build: Build) -> None:
    options: dict[str, Any] = {"selection_fraction": 0.2, "upper_fraction": 0.2, "seed": 0}
    examples = build(["a", "b"] * 20)
    assert make_splits(examples, **options, max_train_rows=32) == make_splits(examples, **options)
    one_of_a_class = build(["a", "a", "b"])
    for limit in (3, 4):
        splits = make_splits(one_of_a_class, selection_fraction=0, upper_fraction=0, max_train_rows=limit, seed=0)
        assert splits.lower == [0, 1, 2]


def test_hash_depends_on_texts_labels_order_and_rows(build: Build) -> None:
    examples = build(["x", "y"], ["a", "b"])
    variants = [
        (examples, [0, 1]),
        (examples, [1, 0]),
        (examples, [0]),
        (examples, []),
        (build(["y", "y"], ["a", "b"]), [0, 1]),
        (build(["x", "y"], ["a", "c"]), [0, 1]),
        (build(["x", "y"], [("a", ""), "b"]), [0, 1]),
        (replace(examples, labels=None), [0, 1]),
    ]
    assert len({split_hash(*variant) for variant in variants}) == len(variants)


def test_hash_stays_the_same_from_release_to_release(build: Build) -> None:
    # sha256 of '[["a"], "x"]\n[["b"], "y"]\n'
    expected = "57f6eea2f542b031b9a89fe2de7791c944eef5dfe15be12b749b3d538f4421b9"
    assert split_hash(build(["x", "y"], ["a", "b"]), [0, 1]) == expected


def test_strata_keep_their_proportion_and_are_not_required_in_every_split(build: Build) -> None:
    examples = replace(build(["0.0"] * 40), labels=[float(i) for i in range(40)])
    strata = ["low"] * 20 + ["high"] * 19 + ["rare"]
    splits = make_splits(examples, selection_fraction=0.1, upper_fraction=0.25, seed=0, strata=strata)
    assert [sum(strata[i] == name for i in splits.selection) for name in ("low", "high")] == [2, 2]
    assert len(splits.lower) + len(splits.upper) + len(splits.selection) == 40


def test_split_without_classes_needs_one_row(build: Build) -> None:
    examples = replace(build(["x"] * 5), labels=[float(i) for i in range(5)])
    with pytest.raises(SplitError, match=r"^data\.upper_fraction=0\.01 of 5 rows leaves 0 rows .*; it needs at least"):
        make_splits(examples, selection_fraction=0, upper_fraction=0.01, seed=0, strata=["x"] * 5)


@given(LABELS, st.integers(2, 6), st.integers(0, 2**32))
def test_folds_divide_the_rows_and_are_off_by_at_most_one_a_class(
    build: Build, labels: list[str], folds: int, seed: int
) -> None:
    examples, options = build(labels), {"selection_fraction": 0.1, "upper_fraction": 0.2, "seed": seed}
    found = [make_splits(examples, fold=(number, folds), **options) for number in range(folds)]

    assert sorted(row for splits in found for row in splits.test) == list(range(len(labels)))
    for splits in found:
        assert sorted(row for part in parts(splits) for row in part) == list(range(len(labels)))
        for name, size in Counter(labels).items():
            assert abs(classes(examples, splits.test)[name] - size / folds) < 1


def test_folds_tear_no_group_and_move_with_the_seed(build: Build) -> None:
    groups = [str(i // 3) for i in range(120)]
    examples = build(["a"] * 60 + ["b"] * 60, groups=groups)
    options = {"selection_fraction": 0.0, "upper_fraction": 0.2}
    found = [make_splits(examples, fold=(number, 5), seed=1, **options).test for number in range(5)]

    assert sum(len({groups[i] for i in rows}) for rows in found) == 40
    sizes = (1, 2, 2, 3, 4, 4, 4, 10, 10)
    uneven = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
    examples_of = build(["a"] * 40, groups=uneven)
    found_of = [make_splits(examples_of, fold=(number, 4), seed=0, **options).test for number in range(4)]
    assert sorted(map(len, found_of)) == [10, 10, 10, 10]
    assert found[0] != make_splits(examples, fold=(0, 5), seed=2, **options).test


def test_more_folds_than_rows_say_so(build: Build) -> None:
    with pytest.raises(SplitError, match=r"data\.folds=9 of 8 rows leaves 0 rows for the fold 8\. Lower data\.folds"):
        [
            make_splits(build(["a"] * 4 + ["b"] * 4), fold=(number, 9), selection_fraction=0, upper_fraction=0, seed=0)
            for number in range(9)
        ]


def test_class_in_one_fold_alone_leaves_none_to_train_on(build: Build) -> None:
    examples = build(["a"] * 20 + ["b"] * 4, groups=[str(i) for i in range(20)] + ["one"] * 4)
    options = {"selection_fraction": 0.0, "upper_fraction": 0.0, "seed": 0}
    with pytest.raises(SplitError, match=r"data\.folds=3 leaves .* of the class 'b'"):
        [make_splits(examples, fold=(number, 3), **options) for number in range(3)]
