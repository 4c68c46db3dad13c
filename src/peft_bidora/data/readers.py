"""Parse the text formats: CSV, TSV, JSON Lines and JSON lists, each from the bytes of one file."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, NoReturn

from peft_bidora.data.table import Row, Table, table_of_rows, unique_columns
from peft_bidora.data.wording import counted, listed
from peft_bidora.errors import DataError

SHOWN_FAULTS = 5


def read_csv(source: str, data: bytes, delimiter: str = ",") -> Table:
    """Read comma-separated values with a header row; every cell stays a string, an empty cell is the empty string.

    A cell that holds the delimiter, a quote or a line break stands in double quotes; a quote within it is doubled.

    Raises:
        DataError: not UTF-8 text, no header, a column name twice, broken quoting, or rows of another length.
    """
    # Blank lines at the end are no rows; anywhere else a blank line is a row of the wrong length.
    text = decode(source, data).rstrip("\r\n")
    with _cells_of_any_length(text):
        (header_line, header), *records = _csv_records(source, text, delimiter)
    if not any(name.strip() for name in header):
        raise DataError(f"{source}, line {header_line}: expected a header row with column names, found a blank line.")
    columns = unique_columns(source, header)
    faults = [
        f"{source}, line {line}: {counted(len(cells), 'cell')}, but the header has {len(columns)} ({listed(columns)}). "
        "Quote a cell that holds the separator or a line break."
        for line, cells in records
        if len(cells) != len(columns)
    ]
    _refuse_faults(source, faults)
    rows: list[Row] = [dict(zip(columns, cells, strict=True)) for _, cells in records]
    return Table(source, columns, rows, [line for line, _ in records], "line", sha256(data).hexdigest())


def read_tsv(source: str, data: bytes) -> Table:
    """Read tab-separated values by the rules of `read_csv`."""
    return read_csv(source, data, delimiter="\t")


def read_json_lines(source: str, data: bytes) -> Table:
    """Read one JSON object a line; blank lines are skipped, and values keep their JSON types.

    Raises:
        DataError: not UTF-8 text, or a line that is no JSON object; the first broken lines are reported together.
    """
    faults: list[str] = []
    rows: list[Row] = []
    lines: list[int] = []
    # str.splitlines would also break at U+2028 and its like, which may stand inside a JSON string.
    for line, text in enumerate(decode(source, data).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            rows.append(_json_object(_parse_json(text)))
            lines.append(line)
        except (ValueError, RecursionError) as error:
            faults.append(f"{source}, line {line}: {_reason(error)}. Each line must be one JSON object.")
    _refuse_faults(source, faults)
    return Table(source, _columns_of(rows), rows, lines, "line", sha256(data).hexdigest())


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
    _refuse_faults(source, faults)
    return table_of_rows(source, _columns_of(elements), elements, sha256(data).hexdigest())


def decode(source: str, data: bytes) -> str:
    """Return the UTF-8 text of a file, without a byte order mark.

    Raises:
        DataError: the file is empty, holds NUL bytes or is not UTF-8.
    """
    body = data.removeprefix(codecs.BOM_UTF8)
    if not body.strip():
        raise DataError(f"{source} is empty; expected column names and at least one row.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = len(data) - len(body) + error.start
        at = f"{source}, line {_line_at(body, error.start)}: byte 0x{body[error.start]:02x} at offset {offset}"
        raise DataError(f"{at} is not UTF-8. Save the file as UTF-8.") from error
    if "\0" in text:
        line = _line_at(body, body.index(b"\0"))
        raise DataError(
            f"{source}, line {line}: a NUL byte, which no text file has. Save the file as UTF-8, not UTF-16."
        )
    return text


def _line_at(body: bytes, position: int) -> int:
    return body.count(b"\n", 0, position) + 1


@contextmanager
def _cells_of_any_length(text: str) -> Iterator[None]:
    """Lift the csv module's limit of 131072 characters a cell, which is global, for one file."""
    before = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_records(source: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line on which it begins; a quoted line break makes a record span lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        advice = 'Put a cell with a quote in it into quotes as a whole, and double the quotes within: "say ""yes""".'
        raise DataError(f"{source}, line {line}: broken quoting ({error}). {advice}") from error


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


def _columns_of(rows: list[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for row in rows for key in row))


def _refuse_faults(source: str, faults: list[str]) -> None:
    if faults:
        rest = len(faults) - SHOWN_FAULTS
        more = [f"{source}: {counted(rest, 'more row')} with such a fault."] if rest > 0 else []
        raise DataError(*faults[:SHOWN_FAULTS], *more)
