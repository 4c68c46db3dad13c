"""Read a source in chunks of rows, so that memory does not grow with the number of rows."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from peft_bidora.data.arrow import is_saved, parquet_rows, read_parquet
from peft_bidora.data.conll import conll_rows, read_conll
from peft_bidora.data.glue import glue_of_file, glue_rows
from peft_bidora.data.readers import (
    csv_rows,
    json_line_rows,
    read_csv,
    read_json_lines,
    read_tsv,
    tsv_rows,
)
from peft_bidora.data.rows import RowStream
from peft_bidora.data.source import no_rows, read_table, reader_of, split_file, unreadable
from peft_bidora.data.table import Table

STANDARD_INPUT = "-"
# By the function that reads the same format as a whole.
STREAMED: dict[Callable[[str, bytes], Table], Callable[[str, BinaryIO], RowStream]] = {
    read_csv: csv_rows,
    read_tsv: tsv_rows,
    read_json_lines: json_line_rows,
    read_conll: conll_rows,
}


@dataclass(frozen=True)
class Chunks:
    """Hold a source on its way.

    Args:
        tables: up to so many rows each, at least one in all; their columns are those of the rows so far.
        fraction: returns how much of the source has been read, in [0, 1]; None where its length is not known.
        schema: of the columns as pyarrow has it; None where the source is no Parquet file.
    """

    tables: Iterator[Table]
    fraction: Callable[[], float | None]
    schema: Any = None


@contextmanager
def open_chunks(source: str, rows: int, split: str = "test") -> Iterator[Chunks]:
    """Open a source to read its tables one after another, by the checks of `read_table`.

    CSV, TSV, JSON Lines, CoNLL, Parquet and the official files of GLUE are read as they are asked for, all else at
    once.

    Args:
        source: as in `read_table`, or `-` for JSON Lines on standard input.
        rows: the most in a table.
        split: of a folder or a hub data set.

    Raises:
        DataError: the source cannot be read or has no rows; or, on the way, what comes cannot be read on.
    """
    if source == STANDARD_INPUT:
        yield _chunks(json_line_rows("standard input", sys.stdin.buffer), rows, lambda: None)
        return
    path = Path(source).expanduser()
    if path.is_dir() and not is_saved(path):
        path = split_file(path, split)
        source = str(path)
    reader = reader_of(source, path) if path.is_file() else None
    glue = glue_of_file(path)
    stream_of = STREAMED.get(reader) if reader else None
    if glue is None and stream_of is None and reader is not read_parquet:
        table = read_table(source, split)
        yield _chunks(RowStream(source, zip(table.lines, table.rows, strict=True), table.columns, table.unit), rows)
        return
    with _open(source, path) as file:
        if reader is read_parquet:
            yield _parquet_chunks(source, file, rows)
            return
        size = path.stat().st_size
        stream = glue_rows(source, file, glue, path.name) if glue else stream_of and stream_of(source, file)
        assert stream
        yield _chunks(stream, rows, lambda: file.tell() / size)


def _open(source: str, path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable(source, error) from error


def _parquet_chunks(source: str, file: BinaryIO, rows: int) -> Chunks:
    stream, parquet = parquet_rows(source, file, batch_rows=rows)
    read = 0

    def counted() -> Iterator[Table]:
        nonlocal read
        for table in _at_least_one(stream, rows):
            read += len(table.rows)
            yield table

    return Chunks(counted(), lambda: read / parquet.metadata.num_rows, parquet.schema_arrow)


def _chunks(stream: RowStream, rows: int, fraction: Callable[[], float | None] = lambda: 1.0) -> Chunks:
    return Chunks(_at_least_one(stream, rows), fraction)


def _at_least_one(stream: RowStream, rows: int) -> Iterator[Table]:
    tables = stream.chunks(rows)
    first = next(tables, None)
    if first is None:
        raise no_rows(stream.source, stream.columns or ())
    yield from chain([first], tables)
