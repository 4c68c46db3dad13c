import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_bidora.data.strata import allocate, split_rows

FRACTIONS = st.integers(0, 100).map(lambda hundredths: hundredths / 100)
SEEDS = st.integers(0, 2**64 - 1)
LABELS = st.lists(st.sampled_from("abcd"), max_size=60)


@st.composite
def grouped_labels(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    labels = draw(LABELS)
    return labels, draw(st.lists(st.sampled_from("uvwxyz"), min_size=len(labels), max_size=len(labels)))


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 200)), FRACTIONS)
def test_allocation_is_floor_or_ceiling_of_each_quota_and_right_in_total(
    sizes: dict[str, int], fraction: float
) -> None:
    exact = Fraction(str(fraction))
    counts = allocate(sizes, exact)
    assert sum(counts.values()) == round(exact * sum(sizes.values()))
    for name, size in sizes.items():
        assert counts[name] in (math.floor(exact * size), math.ceil(exact * size))


def test_largest_remainders_are_served_first_and_ties_by_size() -> None:
    # Quotas 0.75, 2.5, 1.75: floors 0, 2, 1; two of round(5.0) are missing and go to the two quotas that end in .75.
    assert allocate({"a": 3, "b": 10, "c": 7}, Fraction(1, 4)) == {"a": 1, "b": 2, "c": 2}
    # Quotas 0.5 and 1.5: one of two is missing, and the larger stratum takes it.
    assert allocate({"a": 2, "b": 6}, Fraction(1, 4)) == {"a": 0, "b": 2}


def test_a_float_counts_as_the_decimal_it_prints_as() -> None:
    # The float 0.3 is a little less than 3/10: five times it rounds to 1, where 1.5 rounds to the even 2.
    assert len(split_rows(["a"] * 5, range(5), 0.3, 0)[1]) == 2


@given(LABELS, FRACTIONS, SEEDS)
def test_rows_without_groups_are_divided_exactly(labels: list[str], fraction: float, seed: int) -> None:
    kept, held_out = split_rows(labels, range(len(labels)), fraction, seed)
    assert kept == sorted(kept)
    assert held_out == sorted(held_out)
    assert sorted(kept + held_out) == list(range(len(labels)))
    counts = Counter(labels[i] for i in held_out)
    expected = allocate(Counter(labels), Fraction(str(fraction)))
    assert {name: counts[name] for name in expected} == expected


@given(grouped_labels(), FRACTIONS, SEEDS)
def test_groups_are_never_torn_and_counts_never_exceeded(
    rows: tuple[list[str], list[str]], fraction: float, seed: int
) -> None:
    labels, groups = rows
    kept, held_out = split_rows(labels, groups, fraction, seed)
    assert sorted(kept + held_out) == list(range(len(labels)))
    assert {groups[i] for i in kept}.isdisjoint(groups[i] for i in held_out)
    stratum = {group: labels[groups.index(group)] for group in groups}
    counts = Counter(stratum[groups[i]] for i in held_out)
    room = allocate(Counter(stratum[group] for group in groups), Fraction(str(fraction)))
    assert all(counts[name] <= room[name] for name in room)


def test_a_group_too_large_is_passed_over_for_one_that_fits() -> None:
    groups = ["big"] * 5 + ["small"] * 2 + ["alone"] * 3
    for seed in range(10):
        _, held_out = split_rows(["a"] * 10, groups, 0.2, seed)
        assert held_out == [5, 6]


@given(grouped_labels(), FRACTIONS, SEEDS)
def test_same_seed_gives_the_same_rows(rows: tuple[list[str], list[str]], fraction: float, seed: int) -> None:
    assert split_rows(*rows, fraction, seed) == split_rows(*rows, fraction, seed)


def test_other_seeds_give_other_rows() -> None:
    draws = {tuple(split_rows(["a", "b"] * 50, range(100), 0.2, seed)[1]) for seed in range(20)}
    assert len(draws) == 20


@pytest.mark.parametrize("index", range(10))
def test_every_row_is_held_out_about_as_often(index: int) -> None:
    # 400 draws of 2 in 10: mean 80, standard deviation 8; four of those on either side.
    draws = [split_rows(["a"] * 10, range(10), 0.2, seed)[1] for seed in range(400)]
    assert 48 <= sum(index in held_out for held_out in draws) <= 112
