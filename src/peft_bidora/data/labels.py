"""Name the classes of the train rows, and check that no other file has classes beyond them."""

import re
from collections.abc import Iterable, Sequence

from peft_bidora.data.examples import Examples
from peft_bidora.data.wording import listed, places, rows_have
from peft_bidora.errors import DataError

# More digits than a class number has, and few enough for int(), which refuses thousands.
INTEGER = re.compile(r"-?[0-9]{1,100}")


def label_names(examples: Examples) -> list[str]:
    """Return the classes in order: by number if all are integers, else by text.

    Raises:
        DataError: there are fewer than two classes, so that nothing can be told apart.
    """
    names = set(examples.required_labels())
    if len(names) < 2:
        raise DataError(
            f"{examples.source} has a single class {listed(names)}; expected at least two. "
            "Check data.label, or add rows of another class."
        )
    return in_order(names)


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of classes sorted by number if all are integers, else by text."""
    names = list(names)
    if all(INTEGER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def check_labels_known(train_names: Sequence[str], other: Examples) -> None:
    """Check that every label of `other` is a class of the train rows; examples without labels pass.

    Args:
        train_names: the classes of the train rows.
        other: its labels are classes, or tuples of them.

    Raises:
        DataError: there are other classes; they are named, with the count and the first lines of their rows.
    """
    if other.labels is None:
        return
    known = set(train_names)
    strange: dict[int, set[str]] = {}
    for label, line in zip(other.labels, other.lines, strict=True):
        names = {label} if isinstance(label, str) else set(label)
        if names - known:
            strange[line] = names - known
    if strange:
        where = places(other.unit, list(strange))
        raise DataError(
            f"{other.source}: {rows_have(len(strange))} a class that the train rows lack: "
            f"{listed(sorted(set().union(*strange.values())))} ({where}). The train rows have {listed(train_names)}. "
            "Rename or remove these rows, or add such rows to the train file."
        )
