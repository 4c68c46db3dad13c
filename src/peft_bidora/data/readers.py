"""Parse the text formats: CSV, TSV, JSON Lines and JSON lists, each from the bytes of one file."""

import csv
import io
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, BinaryIO, NoReturn

from peft_bidora.data.lines import decode, text_lines
from peft_bidora.data.rows import NumberedRow, RowStream, refuse_faults
from peft_bidora.data.table import Row, Table, table_of_rows, unique_columns
from peft_bidora.data.wording import counted, listed, listed_columns
from peft_bidora.errors import DataError

CELL_LIMIT = 2**31 - 1


def read_csv(source: str, data: bytes) -> Table:
    """Read comma-separated values by the rules of `csv_rows`."""
    return csv_rows(source, io.BytesIO(data)).table(sha256(data).hexdigest())


def read_tsv(source: str, data: bytes) -> Table:
    """Read tab-separated values by the rules of `csv_rows`."""
    return tsv_rows(source, io.BytesIO(data)).table(sha256(data).hexdigest())


def read_json_lines(source: str, data: bytes) -> Table:
    """Read one JSON object a line by the rules of `json_line_rows`."""
    return json_line_rows(source, io.BytesIO(data)).table(sha256(data).hexdigest())


def csv_rows(source: str, stream: BinaryIO, delimiter: str = ",") -> RowStream:
    """Stream comma-separated values with a header row; every cell stays a string, an empty cell is the empty string.

    A cell that holds the delimiter, a quote or a line break stands in double quotes; a quote within it is doubled.
    A row of another length is a fault. Blank lines at the end are no rows.

    Raises:
        DataError: no UTF-8 text, no header, a column name twice, or (on the way) broken quoting.
    """
    records = csv_records(source, text_lines(source, stream, newline=""), delimiter=delimiter)
    header_line, header = next(records)
    if not any(name.strip() for name in header):
        raise DataError(f"{source}, line {header_line}: expected a header row with column names, found a blank line.")
    columns = unique_columns(source, header)
    return RowStream(source, rows_of_cells(source, columns, records), columns)


def tsv_rows(source: str, stream: BinaryIO) -> RowStream:
    """Stream tab-separated values by the rules of `csv_rows`."""
    return csv_rows(source, stream, delimiter="\t")


def json_line_rows(source: str, stream: BinaryIO) -> RowStream:
    """Stream one JSON object a line; blank lines are skipped, and values keep their JSON types.

    A line that is no JSON object is a fault.

    Raises:
        DataError: (on the way) the file is not UTF-8 text.
    """
    return RowStream(source, _json_objects(source, stream))


def read_json(source: str, data: bytes) -> Table:
    """Read a JSON list of objects; rows are counted, since a JSON value has no line of its own.

    Raises:
        DataError: not UTF-8 text, no JSON, no list, or an element that is no object.
    """
    try:
        elements = _parse_json(decode(source, data))
    except (ValueError, RecursionError) as error:
        at = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        advice = "A .json file must be one list of objects; name it .jsonl if each line is an object."
        raise DataError(f"{source}{at}: {_reason(error)}. {advice}") from error
    if not isinstance(elements, list):
        raise DataError(
            f"{source}: expected a list of objects, found {_json_type(elements)}. Put the rows into one list."
        )
    faults = [
        f"{source}, row {number}: expected an object, found {_json_type(element)}."
        for number, element in enumerate(elements, start=1)
        if not isinstance(element, dict)
    ]
    refuse_faults(source, faults)
    columns = dict.fromkeys(key for row in elements for key in row)
    return table_of_rows(source, columns, elements, sha256(data).hexdigest())


def csv_records(source: str, lines: Iterator[str], **dialect: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line on which it begins; a quoted line break makes a record span lines.

    Args:
        source: what the user named.
        lines: of the file, with their ends.
        **dialect: options of `csv.reader`.

    Raises:
        DataError: broken quoting.
    """
    reader = csv.reader(lines, strict=True, **dialect)
    line = 1
    try:
        while True:
            # The module's limit of 131072 characters a cell is global: lift it for this record alone.
            limit = csv.field_size_limit(CELL_LIMIT)
            try:
                cells = next(reader, None)
            finally:
                csv.field_size_limit(limit)
            if cells is None:
                return
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        advice = 'Put a cell with a quote in it into quotes as a whole, and double the quotes within: "say ""yes""".'
        raise DataError(f"{source}, line {line}: broken quoting ({error}). {advice}") from error


def rows_of_cells(
    source: str, columns: tuple[str, ...], records: Iterator[tuple[int, list[str]]]
) -> Iterator[NumberedRow]:
    """Yield a row, or what is wrong with it, for each record but the blank ones at the end."""
    blank: list[tuple[int, list[str]]] = []
    for line, record in records:
        if not record:
            blank.append((line, record))
            continue
        for number, cells in (*blank, (line, record)):
            if len(cells) == len(columns):
                yield number, dict(zip(columns, cells, strict=True))
            else:
                yield (
                    number,
                    f"{source}, line {number}: {counted(len(cells), 'cell')}, but the header has {len(columns)} "
                    f"({listed_columns(columns)}). Quote a cell that holds the separator or a line break.",
                )
        blank.clear()


def _json_objects(source: str, stream: BinaryIO) -> Iterator[NumberedRow]:
    # str.splitlines would also break at U+2028 and its like, which may stand inside a JSON string.
    for line, text in enumerate(text_lines(source, stream), start=1):
        if not text.strip():
            continue
        try:
            yield line, _json_object(_parse_json(text.removesuffix("\n")))
        except (ValueError, RecursionError) as error:
            yield line, f"{source}, line {line}: {_reason(error)}. Each line must be one JSON object."


def _parse_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _unique_keys(pairs: list[tuple[str, object]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"an object with a key twice among {listed(key for key, _ in pairs)}")
    return row


def _json_object(value: object) -> Row:
    if isinstance(value, dict):
        return value
    raise ValueError(f"expected an object, found {_json_type(value)}")


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _reason(error: Exception) -> str:
    """Return the parser's reason without its line number, which counts from the start of the parsed string."""
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON ({error.msg} at column {error.colno})"
    return f"broken JSON ({error})"
