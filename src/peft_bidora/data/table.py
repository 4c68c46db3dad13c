"""The rows of one data file, with the place in the file where each of them stands."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from peft_bidora.data.wording import listed
from peft_bidora.errors import DataError

Row = dict[str, object]
Unit = Literal["line", "row"]


@dataclass(frozen=True)
class Table:
    """Hold one file as it was read; values are not checked yet.

    Args:
        source: what the user named; messages begin with it.
        columns: the column names, in the order of the file (of their first appearance in JSON).
        rows: one dict a row, in file order; a JSON object may lack a column.
        lines: the number of each row, counted from 1 in `unit`s.
        unit: "line" where a text file has line numbers, "row" for JSON lists, Parquet, Arrow and hub data sets.
        sha256: hex digest of the file's bytes (of a saved folder's Arrow files, by name); None for a hub data set.
    """

    source: str
    columns: tuple[str, ...]
    rows: list[Row]
    lines: list[int]
    unit: Unit
    sha256: str | None


def table_of_rows(source: str, columns: Iterable[str], rows: list[Row], sha256: str | None) -> Table:
    """Return a table whose rows are counted by their place in it, for formats without line numbers."""
    return Table(source, tuple(columns), rows, list(range(1, len(rows) + 1)), "row", sha256)


def unique_columns(source: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the column names as a tuple.

    Raises:
        DataError: a name occurs twice.
    """
    counts = Counter(names)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(
            f"{source}: each column needs a name of its own, but {listed(repeated)} occurs more than once. Rename it."
        )
    return tuple(counts)
