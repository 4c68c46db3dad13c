"""Write rows as they come: JSON Lines, CSV, TSV or Parquet, each to one open file."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Protocol

from peft_bidora.data.added import refuse_late, refuse_taken
from peft_bidora.data.parquet_writer import ParquetWriter
from peft_bidora.data.table import Row
from peft_bidora.data.values import HALF_A_PAIR, as_cell, as_json
from peft_bidora.errors import DataError


class RowWriter(Protocol):
    """Take rows in chunks.

    The columns of the first chunk are those of a CSV, TSV or Parquet file.
    """

    def write(self, columns: Sequence[str], rows: Sequence[Row], added: Sequence[Row]) -> None:
        """Write rows, each with the columns that are added to it.

        Args:
            columns: of the rows, in order.
            rows: one dict a row; it may lack a column.
            added: one dict a row, its keys in order; a value may be a dict.

        Raises:
            DataError: a value or a column cannot be written in this format.
        """

    def close(self) -> None:
        """Write what is held back; the file itself stays open."""


class JsonLinesWriter:
    """Write one JSON object a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, columns: Sequence[str], rows: Sequence[Row], added: Sequence[Row]) -> None:
        """Write rows with their own keys alone, and values as they are."""
        refuse_taken(columns, added)
        lines = [as_json({**row, **extra}) for row, extra in zip(rows, added, strict=True)]
        self._file.write(b"".join(line + b"\n" for line in lines))
        self._file.flush()

    def close(self) -> None:
        """Nothing is held back."""


class CellsWriter:
    """Write a header and then cells: text as it is, null as an empty cell, a list or an object as JSON.

    An added column that holds an object gives a column a key, `probability_KEY` for the column `probabilities`.
    """

    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        self._file = file
        self._buffer = io.StringIO()
        # With this line end every cell with a line break is quoted; it becomes "\n" below.
        self._writer = csv.writer(self._buffer, delimiter=delimiter, lineterminator="\r\n")
        self._header: list[str] | None = None

    def write(self, columns: Sequence[str], rows: Sequence[Row], added: Sequence[Row]) -> None:
        """Write rows as lines."""
        flat = [_flat(extra) for extra in added]
        refuse_taken(columns, flat)
        names = list(dict.fromkeys([*columns, *(name for extra in flat for name in extra)]))
        header = names if self._header is None else self._header
        refuse_late(names, header)
        whole = [{**row, **extra} for row, extra in zip(rows, flat, strict=True)]
        lines = [self._line([as_cell(row.get(name)) for name in header]) for row in whole]
        if self._header is None:
            lines.insert(0, self._line(header))
        self._file.write(b"".join(lines))
        self._file.flush()
        self._header = header

    def close(self) -> None:
        """Nothing is held back."""

    def _line(self, cells: Sequence[str]) -> bytes:
        self._writer.writerow(cells)
        line = self._buffer.getvalue().removesuffix("\r\n") + "\n"
        self._buffer.seek(0)
        self._buffer.truncate()
        try:
            return line.encode()
        except UnicodeEncodeError as error:
            raise DataError(HALF_A_PAIR) from error


def _json_lines(file: BinaryIO, schema: Any = None) -> RowWriter:
    return JsonLinesWriter(file)


WRITERS: dict[str, Callable[[BinaryIO, Any], RowWriter]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": lambda file, schema: CellsWriter(file, ","),
    ".tsv": lambda file, schema: CellsWriter(file, "\t"),
    ".parquet": ParquetWriter,
}


def _flat(row: Row) -> Row:
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, dict):
            stem = "probability" if name == "probabilities" else name
            flat |= {f"{stem}_{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat
