"""Turn the rows of a table into checked examples; all faults of a file are reported at once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from peft_bidora.data.columns import CLASSES, Columns, Layout, require_columns
from peft_bidora.data.faults import Fault, is_empty
from peft_bidora.data.fields import FieldReader, read_group
from peft_bidora.data.table import Row, Table, Unit
from peft_bidora.data.wording import listed, listed_columns, places, rows_have
from peft_bidora.errors import DataError

CHUNK = 1000


@dataclass(frozen=True)
class Examples:
    """Hold the checked rows of one file as parallel lists.

    Args:
        texts: of each row one string, or two for a pair, or what else its task reads as text.
        labels: of each row what its task predicts (the name of a class, say); None if the file has no labels.
        groups: the group of each row; None if the user named no group column.
        rows: the whole rows of the file, for prediction files.
        source: what the user named.
        lines: the number of each row in the file, counted from 1 in `unit`s.
        unit: "line" or "row", as in `Table`.
    """

    texts: list[tuple[Any, ...]]
    labels: list[Any] | None
    groups: list[str] | None
    rows: list[Row]
    source: str
    lines: list[int]
    unit: Unit

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Examples":
        """Return the examples at these indices, in their order."""
        chosen = list(indices)
        return replace(
            self,
            texts=[self.texts[i] for i in chosen],
            labels=None if self.labels is None else [self.labels[i] for i in chosen],
            groups=None if self.groups is None else [self.groups[i] for i in chosen],
            rows=[self.rows[i] for i in chosen],
            lines=[self.lines[i] for i in chosen],
        )

    def chunks(self) -> Iterator["Examples"]:
        """Yield the examples a thousand at a time, so that what is made of them need not lie in memory at once."""
        for start in range(0, len(self), CHUNK):
            yield self.take(range(start, min(start + CHUNK, len(self))))

    def required_labels(self) -> list[Any]:
        """Return the labels, for work that is impossible without.

        Raises:
            DataError: there are none.
        """
        if self.labels is None:
            raise DataError(f"{self.source} has no labels, but they are needed here. Name their column by data.label.")
        return self.labels


def read_examples(table: Table, columns: Columns, layout: Layout = CLASSES, *, require_labels: bool = True) -> Examples:
    """Return the rows of a table as checked examples.

    Without `require_labels` the label column may be missing or wholly empty.

    Args:
        table: one file.
        columns: which of its columns to read.
        layout: how to read them.
        require_labels: whether a file without labels is refused.

    Raises:
        DataError: columns are missing, or rows have faults: one sentence a kind, with the count and the first lines.
    """
    if not require_labels and not _has_labels(table, columns.label):
        columns = replace(columns, label=None)
    elif columns.label is None:
        raise DataError(
            f"{table.source} needs a label column; it has {listed_columns(table.columns)}, none of them sure to be one."
            " Set data.label."
        )
    require_columns(table, columns)
    faults = _Faults(table)
    sides = [faults.read(layout.text, column) for column in columns.text]
    labels = None if columns.label is None else faults.read(layout.label, columns.label)
    groups = None if columns.group is None else faults.read(read_group, columns.group)
    texts = list(zip(*sides, strict=True))
    if layout.check is not None and labels is not None:
        faults.check(layout.check, texts, labels)
    faults.raise_any()
    return Examples(
        texts=texts,
        labels=labels,
        groups=groups,
        rows=table.rows,
        source=table.source,
        lines=table.lines,
        unit=table.unit,
    )


def _has_labels(table: Table, column: str | None) -> bool:
    return column is not None and any(not is_empty(row.get(column)) for row in table.rows)


class _Faults:
    """Collect what is wrong, by kind, with the lines of each."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._lines: dict[tuple[str, str], list[int]] = {}
        self._found: dict[tuple[str, str], set[str]] = {}

    def read(self, reader: FieldReader, column: str) -> list[Any]:
        values = [reader(row.get(column), column) for row in self._table.rows]
        self._collect(values)
        return values

    def check(self, check: Callable[[Any, Any], Fault | None], texts: list[Any], labels: list[Any]) -> None:
        pairs = list(zip(texts, labels, strict=True))
        self._collect([None if _is_faulty(text, label) else check(text, label) for text, label in pairs])

    def raise_any(self) -> None:
        if self._lines:
            source, unit = self._table.source, self._table.unit
            raise DataError(
                *(
                    f"{source}: {rows_have(len(lines))} {key[0]}{self._listed(key)} ({places(unit, lines)}); {key[1]}"
                    for key, lines in self._lines.items()
                )
            )

    def _collect(self, values: Iterable[Any]) -> None:
        for value, line in zip(values, self._table.lines, strict=True):
            if isinstance(value, Fault):
                key = (value.what, value.advice)
                self._lines.setdefault(key, []).append(line)
                self._found.setdefault(key, set()).update(value.found)

    def _listed(self, key: tuple[str, str]) -> str:
        return f": {listed(sorted(self._found[key]))}" if self._found[key] else ""


def _is_faulty(text: tuple[Any, ...], label: Any) -> bool:
    return isinstance(label, Fault) or any(isinstance(side, Fault) for side in text)
