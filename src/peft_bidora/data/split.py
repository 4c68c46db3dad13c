"""Divide rows into lower, upper, selection and test splits: disjoint, seeded, stratified by class, by whole groups."""

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import sha256

import numpy as np

from peft_bidora.data.examples import Examples
from peft_bidora.data.repeats import text_keys
from peft_bidora.data.strata import fold_rows, split_rows
from peft_bidora.data.wording import counted, listed
from peft_bidora.errors import SplitError

ANY_CLASS = ""  # of every row where the labels are no classes


@dataclass(frozen=True)
class Splits:
    """Hold the indices of the train file's rows in each split, ascending; no row is in two.

    Args:
        lower: rows that train the direction.
        upper: rows that train the magnitude; empty if upper_fraction is 0.
        selection: rows that choose among checkpoints; empty if they have a file of their own or are not wanted.
        test: rows that are scored once, at the end; empty likewise.
    """

    lower: list[int]
    upper: list[int]
    selection: list[int]
    test: list[int]


def make_splits(
    examples: Examples,
    *,
    selection_fraction: float,
    upper_fraction: float,
    test_fraction: float = 0.0,
    test_seed: int | None = None,
    fold: tuple[int, int] | None = None,
    max_train_rows: int | None = None,
    seed: int,
    strata: Sequence[str] | None = None,
) -> Splits:
    """Return the four splits of the train file's rows.

    Test is cut first, then selection, then what exceeds max_train_rows is left out, then upper is cut; lower is the
    rest. Each cut has a seed of its own, so that no option moves a row of a split that is cut before its turn.
    Rows of a group stay together; without a group column, rows with the same text are a group.

    Args:
        examples: the labelled rows of the train file.
        selection_fraction: of the rows that test leaves, in [0, 1); 0 for no selection split.
        upper_fraction: of the rows that are left for training, in [0, 1); 0 for no upper split.
        test_fraction: of all rows, in [0, 1); 0 for no test split.
        test_seed: of the draw of that fraction; None for `seed`.
        fold: its number from 0 up, and the number of folds that a seed divides the rows into; the test split is that
            fold. None for a test split by its fraction.
        max_train_rows: the most rows that lower and upper hold together; None for no limit.
        seed: the same seed gives the same splits.
        strata: (rows,), what each cut keeps in proportion, none of it required in every split; None for the labels,
            which are classes then.

    Raises:
        SplitError: an option is out of range, or lower, upper or selection would lack a class or be empty.
    """
    _check_options(
        seed,
        max_train_rows,
        {"test": test_fraction, "selection": selection_fraction, "upper": upper_fraction},
    )
    groups: Sequence[Hashable] = text_keys(examples) if examples.groups is None else examples.groups
    labels = examples.required_labels()
    classes = labels if strata is None else [ANY_CLASS] * len(labels)
    pool = _Pool(strata or labels, classes, groups, list(range(len(examples))))
    seeds = _seeds(seed)
    cure = "add rows" if max_train_rows is None else "raise data.max_train_rows"
    if fold is None:
        pool, test = _cut(pool, "test", test_fraction, seeds[0] if test_seed is None else _seeds(test_seed)[0])
    else:
        pool, test = _fold(pool, *fold, seeds[0])
    pool, selection = _cut(pool, "selection", selection_fraction, seeds[1])
    pool = _limit(pool, max_train_rows, seeds[2])
    lower, upper = _cut(pool, "upper", upper_fraction, seeds[3], cure)
    return Splits(lower.rows, upper.rows, selection.rows, test.rows)


def _seeds(seed: int) -> list[int]:
    """Return a seed for each cut."""
    return [int(state) for state in np.random.SeedSequence(seed).generate_state(4, np.uint64)]


def split_hash(examples: Examples, indices: Iterable[int]) -> str:
    """Return the SHA-256 of the texts and labels of these rows in this order, one JSON list a line."""
    digest = sha256()
    for index in indices:
        label = None if examples.labels is None else examples.labels[index]
        digest.update(json.dumps([examples.texts[index], label]).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class _Pool:
    """Rows that are still to be divided; `strata`, `classes` and `groups` are those of the whole file."""

    strata: Sequence[str]
    classes: Sequence[str]
    groups: Sequence[Hashable]
    rows: list[int]

    def divide(self, fraction: float | Fraction, seed: int) -> tuple["_Pool", "_Pool"]:
        strata, groups = [self.strata[i] for i in self.rows], [self.groups[i] for i in self.rows]
        kept, held_out = split_rows(strata, groups, fraction, seed)
        return self._part(kept), self._part(held_out)

    def sizes(self) -> Counter[str]:
        return Counter(self.classes[i] for i in self.rows)

    def _part(self, positions: list[int]) -> "_Pool":
        return _Pool(self.strata, self.classes, self.groups, [self.rows[position] for position in positions])


def _check_options(seed: int, max_train_rows: int | None, fractions: dict[str, float]) -> None:
    faults = [
        f"data.{name}_fraction={fraction}: expected a number from 0 up to, but not including, 1. Correct it."
        for name, fraction in fractions.items()
        if not 0 <= fraction < 1
    ]
    if max_train_rows is not None and max_train_rows < 1:
        faults.append(
            f"data.max_train_rows={max_train_rows}: expected a number of rows from 1 up, or null. Correct it."
        )
    if seed < 0:
        faults.append(f"seed={seed}: expected a whole number from 0 up. Correct it.")
    if faults:
        raise SplitError(*faults)


def _cut(pool: _Pool, name: str, fraction: float, seed: int, cure: str = "add rows") -> tuple[_Pool, _Pool]:
    """Return the rest and the named split; the test split alone may lack a class, yet not be empty."""
    kept, held_out = pool.divide(fraction, seed)
    if fraction > 0:
        key = f"data.{name}_fraction"
        cause = f"{key}={fraction} of {counted(len(pool.rows), 'row')}"
        if name != "test":
            _require_classes(
                pool, held_out, 1, cause, f"the {name} split", f"Raise {key}{_enough(pool, held_out)} or {cure}."
            )
        elif not held_out.rows:
            raise SplitError(f"{cause} leaves 0 rows for the test split; it needs at least one. Raise {key} or {cure}.")
        rest = "the lower split" if name == "upper" else "training"
        _require_classes(pool, kept, 1, cause, rest, f"Lower {key} or {cure}.")
    return kept, held_out


def _fold(pool: _Pool, number: int, folds: int, seed: int) -> tuple[_Pool, _Pool]:
    """Return the rest and the fold."""
    found = fold_rows(pool.strata, pool.groups, folds, seed)
    kept, part = (replace(pool, rows=[i for i in pool.rows if (found[i] == number) == held]) for held in (False, True))
    if not part.rows:
        raise SplitError(
            f"data.folds={folds} of {counted(len(pool.rows), 'row')} leaves 0 rows for the fold {number}. Lower"
            " data.folds or add rows."
        )
    _require_classes(pool, kept, 1, f"data.folds={folds}", "training", "Add rows.")
    return kept, part


def _enough(pool: _Pool, held_out: _Pool) -> str:
    """Return ` to F`, the least of the hundredths that holds out a row of each class; "" where groups decide it."""
    sizes, groups, has = pool.sizes(), _group_counts(pool), held_out.sizes()
    short = [name for name in sizes if not has[name]]
    if any(groups[name] < sizes[name] for name in short):
        return ""
    least = math.ceil(Fraction(100, min((sizes[name] for name in short), default=1)))  # floor(F · size) >= 1
    return f" to {least / 100:g}"


def _limit(pool: _Pool, max_train_rows: int | None, seed: int) -> _Pool:
    """Return at most max_train_rows rows, with the classes in proportion."""
    if max_train_rows is None or max_train_rows >= len(pool.rows):
        return pool
    _, chosen = pool.divide(Fraction(max_train_rows, len(pool.rows)), seed)
    # floor(limit · size / rows) >= 2 for the rarest class
    enough = math.ceil(Fraction(2 * len(pool.rows), min(pool.sizes().values())))
    advice = f"Raise data.max_train_rows to {enough}." if enough <= len(pool.rows) else "Add rows of it."
    cause = f"data.max_train_rows={max_train_rows} of {counted(len(pool.rows), 'row')}"
    _require_classes(pool, chosen, 2, cause, "the lower and upper splits", advice)
    return chosen


def _require_classes(pool: _Pool, part: _Pool, needed: int, cause: str, use: str, advice: str) -> None:
    """Raise SplitError if a part of the pool has fewer rows of a class than needed."""
    had, has = pool.sizes(), part.sizes()
    short = sorted((name for name in had if has[name] < needed), key=lambda name: (had[name], name))
    if not short:
        return
    name = short[0]
    groups = _group_counts(pool)
    within = f" in {counted(groups[name], 'group')}" if groups[name] < had[name] else ""
    detail = f", {has[name]} of the class {name!r} (which has {counted(had[name], 'row')}{within})" if part.rows else ""
    minimum = {1: "one row", 2: "two rows"}[needed]
    if name == ANY_CLASS:
        raise SplitError(
            f"{cause} leaves {counted(len(part.rows), 'row')} for {use}; it needs at least {minimum}. {advice}"
        )
    if groups[name] == 1:  # which no fraction puts on both sides of a cut
        single = sorted(one for one, count in groups.items() if count == 1)
        advice = f"Add rows of {listed(single)}, or leave {'it' if len(single) == 1 else 'them'} out."
    raise SplitError(
        f"{cause} leaves {counted(len(part.rows), 'row')} for {use}{detail}; "
        f"it needs at least {minimum} a class ({needed * len(had)}). {advice}"
    )


def _group_counts(pool: _Pool) -> Counter[str]:
    """Return in how many groups the rows of each class are."""
    return Counter(name for name, _ in {(pool.classes[i], pool.groups[i]) for i in pool.rows})
