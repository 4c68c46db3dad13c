"""Decide which columns of a table hold the text, the label and the group."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft_bidora.data.faults import Fault, is_empty
from peft_bidora.data.fields import FieldReader, read_class, read_text
from peft_bidora.data.table import Table
from peft_bidora.data.wording import listed, listed_columns, suggestion
from peft_bidora.errors import DataError

LABEL_NAMES = ("label", "labels", "class", "category", "target", "y")
TEXT_NAMES = ("text", "sentence", "content", "review", "question", "sequence", "document", "comment", "tweet")
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "passage"),
)


@dataclass(frozen=True)
class Layout:
    """Say what the table of a task holds; the defaults are those of a classification.

    Args:
        text: reads a value of a text column.
        label: reads a value of the label column.
        text_names: columns that are taken for the text where the user names none.
        pair_names: the same for pairs of texts.
        label_names: the same for the label.
        label_aliases: names of the label that may differ from file to file.
        check: what is wrong between the texts and the label of a row, each already read; None where nothing is.
        wanted: what a text column holds, in words.
    """

    text: FieldReader = read_text
    label: FieldReader = read_class
    text_names: tuple[str, ...] = TEXT_NAMES
    pair_names: tuple[tuple[str, str], ...] = PAIR_NAMES
    label_names: tuple[str, ...] = LABEL_NAMES
    label_aliases: tuple[str, ...] = ()
    check: Callable[[tuple[Any, ...], Any], Fault | None] | None = None
    wanted: str = "a text"


CLASSES = Layout()


@dataclass(frozen=True)
class Columns:
    """Name the columns of a table.

    Args:
        text: one column, or two for a pair.
        label: what is to be predicted of each row; None where the table has none.
        group: rows that share its value are never torn by a split; None where the user named none.
    """

    text: tuple[str, ...]
    label: str | None
    group: str | None = None

    def named(self) -> list[tuple[str, str]]:
        """Return each column that is set with the recipe key that sets it."""
        keys = [("data.text", column) for column in self.text]
        optional = [("data.label", self.label), ("data.group", self.group)]
        return keys + [(key, column) for key, column in optional if column is not None]


def resolve_columns(
    table: Table,
    text: Sequence[str] | None,
    label: str | None,
    group: str | None = None,
    layout: Layout = CLASSES,
) -> tuple[Columns, list[str]]:
    """Return the columns of a table and one sentence for each that was guessed.

    What is None is guessed where the names leave no doubt. A table without any label column gives `label=None`;
    whether it may is decided by `read_examples`.

    Raises:
        DataError: a named column is missing or named twice, or a guess is in doubt.
    """
    if text is not None and len(text) not in (1, 2):
        raise DataError(f"data.text names {len(text)} columns; expected one, or two for a pair. Correct data.text.")
    named = Columns(tuple(text or ()), label, group)
    faults = [*_missing_faults(table, named.named()), *_repeated_faults(named.named())]
    if faults:
        raise DataError(*faults)
    guesses: list[str] = []
    if label is None:
        label = _guess_label(table, layout, taken=[column for _, column in named.named()])
        guesses += [_guess_sentence(table, "data.label", (label,))] if label is not None else []
    if text is None:
        text = _guess_text(table, layout, taken=[column for column in (label, group) if column is not None])
        guesses.append(_guess_sentence(table, "data.text", text))
    return Columns(tuple(text), label, group), guesses


def columns_of_other(table: Table, columns: Columns, layout: Layout) -> Columns:
    """Return the columns of another file than the train file: its label may go by an alias, and it needs no groups.

    Raises:
        DataError: a column is missing.
    """
    found = [name for name in layout.label_aliases if name in table.columns]
    if columns.label in layout.label_aliases and columns.label not in table.columns and len(found) == 1:
        columns = replace(columns, label=found[0])
    columns = replace(columns, group=None)
    faults = [
        f"{table.source} has no column {column!r}, which the train file has for {key}; it has"
        f" {listed_columns(table.columns)}."
        f"{suggestion(column, table.columns)} Rename the one that is meant."
        for key, column in columns.named()
        if column not in table.columns
    ]
    if faults:
        raise DataError(*faults)
    return columns


def require_columns(table: Table, columns: Columns) -> None:
    """Check that a table has the columns that were resolved on another one.

    Raises:
        DataError: columns are missing; each is named with the nearest name there is.
    """
    faults = _missing_faults(table, columns.named())
    if faults:
        raise DataError(*faults)


def _missing_faults(table: Table, named: Iterable[tuple[str, str]]) -> list[str]:
    return [
        f"{key} names the column {column!r}, but {table.source} has {listed_columns(table.columns)}."
        f"{suggestion(column, table.columns)} Correct {key}."
        for key, column in named
        if column not in table.columns
    ]


def _repeated_faults(named: list[tuple[str, str]]) -> list[str]:
    keys: dict[str, list[str]] = {}
    for key, column in named:
        keys.setdefault(column, []).append(key)
    return [
        f"The column {column!r} is named by {' and by '.join(users)}; each needs a column of its own."
        for column, users in keys.items()
        if len(users) > 1
    ]


def _guess_label(table: Table, layout: Layout, taken: Sequence[str]) -> str | None:
    found = [name for name in layout.label_names if name in table.columns and name not in taken]
    if len(found) > 1:
        raise DataError(_doubt(table, "data.label", f"{listed(found)} could each be the label"))
    return found[0] if found else None


def _guess_text(table: Table, layout: Layout, taken: Sequence[str]) -> tuple[str, ...]:
    free = [column for column in table.columns if column not in taken]
    found: list[tuple[str, ...]] = [pair for pair in layout.pair_names if set(pair) <= set(free)]
    paired = {column for pair in found for column in pair}
    found += [(name,) for name in layout.text_names if name in free and name not in paired]
    found = found or [(column,) for column in free if _holds_texts(table, layout, column)]
    if len(found) == 1:
        return found[0]
    choices = ", ".join(f"({listed(columns)})" if len(columns) > 1 else repr(columns[0]) for columns in found)
    if found:
        raise DataError(_doubt(table, "data.text", f"{choices} could each be the text"))
    wanted = layout.wanted
    raise DataError(
        f"data.text is not set, and no column of {table.source} ({listed_columns(table.columns)}) holds {wanted} in"
        " every row, as the task reads. Set data.text, or another task."
    )


def _holds_texts(table: Table, layout: Layout, column: str) -> bool:
    values = [row[column] for row in table.rows if not is_empty(row.get(column))]
    return bool(values) and not any(isinstance(layout.text(value, column), Fault) for value in values)


def _doubt(table: Table, key: str, why: str) -> str:
    return f"{key} is not set, and of the columns of {table.source} ({listed_columns(table.columns)}) {why}. Set {key}."


def _guess_sentence(table: Table, key: str, columns: Sequence[str]) -> str:
    noun = "column" if len(columns) == 1 else "columns"
    return f"{key} is not set: using the {noun} {' and '.join(map(repr, columns))} of {table.source}"
