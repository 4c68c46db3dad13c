"""Turn the rows of a classification table into checked examples; all faults of a file are reported at once."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from peft_bidora.data.columns import Columns, require_columns
from peft_bidora.data.faults import Fault, is_empty, name_of, row_faults
from peft_bidora.data.table import Row, Table, Unit
from peft_bidora.data.wording import listed, places, rows_have
from peft_bidora.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Hold the checked rows of one file as parallel lists.

    Args:
        texts: one string a row, or two for a pair.
        labels: the class name of each row; None if the file has no labels.
        groups: the group of each row; None if the user named no group column.
        rows: the whole rows of the file, for prediction files.
        source: what the user named.
        lines: the number of each row in the file, counted from 1 in `unit`s.
        unit: "line" or "row", as in `Table`.
    """

    texts: list[tuple[str, ...]]
    labels: list[str] | None
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

    def required_labels(self) -> list[str]:
        """Return the labels, for work that is impossible without.

        Raises:
            DataError: there are none.
        """
        if self.labels is None:
            raise DataError(f"{self.source} has no labels, but they are needed here. Name their column by data.label.")
        return self.labels


def read_examples(table: Table, columns: Columns, require_labels: bool = True) -> Examples:
    """Return the rows of a table as checked examples.

    A text is a string that is not blank. A label or a group is a string, an integer (also written 1.0) or a
    boolean. Without `require_labels` the label column may be missing or wholly empty.

    Raises:
        DataError: columns are missing, or rows have faults: one sentence a kind, with the count and the first lines.
    """
    if not require_labels and not _has_labels(table, columns.label):
        columns = replace(columns, label=None)
    elif columns.label is None:
        raise DataError(
            f"{table.source} needs a label column; it has {listed(table.columns)}, none of them sure to be one. "
            "Set data.label."
        )
    require_columns(table, columns)
    _refuse_faults(table, columns)
    return Examples(
        texts=[tuple(str(row[column]) for column in columns.text) for row in table.rows],
        labels=_names(table.rows, columns.label),
        groups=_names(table.rows, columns.group),
        rows=table.rows,
        source=table.source,
        lines=table.lines,
        unit=table.unit,
    )


def _has_labels(table: Table, column: str | None) -> bool:
    return column is not None and any(not is_empty(row.get(column)) for row in table.rows)


def _refuse_faults(table: Table, columns: Columns) -> None:
    lines_of: dict[Fault, list[int]] = {}
    for row, line in zip(table.rows, table.lines, strict=True):
        for fault in row_faults(row, columns):
            lines_of.setdefault(fault, []).append(line)
    if lines_of:
        raise DataError(
            *(
                f"{table.source}: {rows_have(len(lines))} {fault.what} ({places(table.unit, lines)}); {fault.advice}"
                for fault, lines in lines_of.items()
            )
        )


def _names(rows: list[Row], column: str | None) -> list[str] | None:
    # `row_faults` has refused what has no name.
    return None if column is None else [str(name_of(row[column])) for row in rows]
