"""Rows on their way from a file: each numbered, and either read or at fault."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from peft_bidora.data.table import Row, Table, Unit
from peft_bidora.data.wording import counted
from peft_bidora.errors import DataError

SHOWN_FAULTS = 5
# Its number, counted from 1, and the row or a sentence that says what is wrong with it.
NumberedRow = tuple[int, Row | str]


@dataclass(frozen=True)
class RowStream:
    """Hold a file whose rows are read as they are asked for, once.

    Args:
        source: what the user named.
        rows: in file order; it raises DataError where the file cannot be read on.
        columns: of every row; None where each row names its own.
        unit: what the numbers count, as in `Table`.
    """

    source: str
    rows: Iterator[NumberedRow]
    columns: tuple[str, ...] | None = None
    unit: Unit = "line"

    def table(self, sha256: str | None) -> Table:
        """Return all rows that are left.

        Raises:
            DataError: rows are at fault; the first of them are reported together.
        """
        return self._table(self.rows, self.columns or (), sha256)

    def chunks(self, size: int) -> Iterator[Table]:
        """Yield tables of up to `size` rows; their columns are those of the rows so far.

        Raises:
            DataError: as by `table`, of a chunk.
        """
        columns = self.columns or ()
        while numbered := list(islice(self.rows, size)):
            chunk = self._table(iter(numbered), columns, None)
            columns = chunk.columns
            yield chunk

    def _table(self, numbered: Iterator[NumberedRow], columns: tuple[str, ...], sha256: str | None) -> Table:
        rows: list[Row] = []
        lines: list[int] = []
        faults: list[str] = []
        for line, row in numbered:
            if isinstance(row, str):
                faults.append(row)
                continue
            rows.append(row)
            lines.append(line)
        refuse_faults(self.source, faults)
        if self.columns is None:
            columns = tuple(dict.fromkeys((*columns, *(key for row in rows for key in row))))
        return Table(self.source, columns, rows, lines, self.unit, sha256)


def refuse_faults(source: str, faults: list[str]) -> None:
    """Raise DataError with the first of the faults and the number of the others, if there are any."""
    if faults:
        rest = len(faults) - SHOWN_FAULTS
        more = [f"{source}: {counted(rest, 'more row')} with such a fault."] if rest > 0 else []
        raise DataError(*faults[:SHOWN_FAULTS], *more)
