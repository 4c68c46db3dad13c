"""Hold out a fraction of the rows of every class, by whole groups."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction

import numpy as np


def split_rows(
    labels: Sequence[str], groups: Sequence[Hashable], fraction: float | Fraction, seed: int
) -> tuple[list[int], list[int]]:
    """Return the indices of the rows that are kept and of those held out, each ascending.

    A group belongs to the stratum of its first row's label, with all its rows. The groups are walked in a random
    order, and one is held out if it still fits into its stratum's count of `allocate`. The counts are therefore
    met exactly by groups of one row; larger groups may leave them short, and none is ever exceeded or torn.

    Args:
        labels: (rows,), the class of each row.
        groups: (rows,), equal for rows that must stay together.
        fraction: the part of the rows to hold out, in [0, 1]; a float counts as the decimal that it prints as.
        seed: of the random order.
    """
    blocks = _blocks(groups)
    sizes: Counter[str] = Counter()
    for block in blocks:
        sizes[labels[block[0]]] += len(block)
    room = allocate(sizes, exact_fraction(fraction))
    held_out: set[int] = set()
    for position in np.random.default_rng(seed).permutation(len(blocks)):
        block = blocks[position]
        stratum = labels[block[0]]
        if len(block) <= room[stratum]:
            room[stratum] -= len(block)
            held_out.update(block)
    return [index for index in range(len(labels)) if index not in held_out], sorted(held_out)


def fold_rows(labels: Sequence[str], groups: Sequence[Hashable], folds: int, seed: int) -> list[int]:
    """Return the fold of each row, (rows,), from 0 up: of every stratum as many rows in each as its groups allow.

    The groups are walked in a random order, the largest first; each goes to the fold that has the fewest rows of its
    stratum, of those the fewest of all. Groups of one row are off by at most one a stratum.

    Args:
        labels: (rows,), the class of each row.
        groups: (rows,), equal for rows that must stay together.
        folds: their number.
        seed: of the random order.
    """
    blocks = _blocks(groups)
    order = sorted(np.random.default_rng(seed).permutation(len(blocks)), key=lambda place: -len(blocks[place]))
    has, found = Counter[tuple[str, int]](), [0] * len(labels)
    sizes = [0] * folds
    for block in (blocks[place] for place in order):
        stratum = labels[block[0]]
        fold = min(range(folds), key=lambda number: (has[stratum, number], sizes[number]))
        has[stratum, fold] += len(block)
        sizes[fold] += len(block)
        for index in block:
            found[index] = fold
    return found


def allocate(sizes: Mapping[str, int], fraction: Fraction) -> dict[str, int]:
    """Return how many rows of each stratum to hold out, by the method of the largest remainder.

    count_s is the floor or the ceiling of fraction · size_s, and Σ count_s = round(fraction · Σ size_s).

    Args:
        sizes: the rows of each stratum.
        fraction: the part of the rows to hold out, in [0, 1].
    """
    quotas = {name: fraction * size for name, size in sizes.items()}
    counts = {name: math.floor(quota) for name, quota in quotas.items()}
    missing = round(fraction * sum(sizes.values())) - sum(counts.values())
    # Equal remainders go to the larger stratum first, so that the order of the rows decides nothing.
    by_remainder = sorted(sizes, key=lambda name: (counts[name] - quotas[name], -sizes[name], name))
    for name in by_remainder[:missing]:
        counts[name] += 1
    return counts


def exact_fraction(fraction: float | Fraction) -> Fraction:
    """Return the number as the user wrote it: the float 0.3 is a little less, and 0.3 of 5 would not round to 2."""
    return fraction if isinstance(fraction, Fraction) else Fraction(str(fraction))


def _blocks(groups: Sequence[Hashable]) -> list[list[int]]:
    """Return the rows of each group."""
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return list(members.values())
