"""Read a text file line by line: UTF-8, with any faulty byte named by its place."""

import io
from collections.abc import Iterator
from typing import BinaryIO, Literal

from peft_bidora.errors import DataError

BLANKS = " \t\n\r\x0b\x0c"


def text_lines(source: str, stream: BinaryIO, newline: Literal["\n", ""] = "\n") -> Iterator[str]:
    r"""Yield the lines of a UTF-8 file, each with its end, without a byte order mark.

    Args:
        source: what the user named.
        stream: of the file's bytes, at its start; it is left open.
        newline: "\n" breaks lines at that alone, "" at "\r" and "\r\n" too.

    Raises:
        DataError: the file holds nothing but blanks, NUL bytes, or bytes that are not UTF-8.
    """
    leading: list[str] | None = []
    for line in _decoded(source, stream, newline):
        if leading is None:
            yield line
            continue
        leading.append(line)
        if line.strip(BLANKS):
            yield from leading
            leading = None
    if leading is not None:
        raise DataError(f"{source} is empty; expected column names and at least one row.")


def decode(source: str, data: bytes) -> str:
    """Return the text of a whole file, by the rules of `text_lines`."""
    return "".join(text_lines(source, io.BytesIO(data)))


def _decoded(source: str, stream: BinaryIO, newline: str) -> Iterator[str]:
    # A byte that is not UTF-8 becomes half a surrogate pair, which no valid text decodes to.
    reader = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline=newline)
    number, offset = 1, 0
    try:
        for line in reader:
            strange = None if line.isascii() else _first_undecoded(line)
            if strange is not None:
                position, byte = strange
                at = offset + len(line[:position].encode())
                raise DataError(
                    f"{source}, line {number}: byte 0x{byte:02x} at offset {at} is not UTF-8. Save the file as UTF-8."
                )
            if "\0" in line:
                raise DataError(
                    f"{source}, line {number}: a NUL byte, which no text file has. Save the file as UTF-8, not UTF-16."
                )
            size = len(line) if line.isascii() else len(line.encode())
            yield line if offset else line.removeprefix("\ufeff")
            offset += size
            # "\r" ends a line of a CSV file, yet editors and the other messages count "\n" alone.
            number += line.endswith("\n")
    except OSError as error:
        raise DataError(f"{source}, line {number}: the system gives no more ({error.strerror}). Copy it.") from error
    finally:
        if not stream.closed:
            reader.detach()


def _first_undecoded(line: str) -> tuple[int, int] | None:
    """Return the position in the line and the value of the first byte that was not UTF-8."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        return error.start, ord(line[error.start]) - 0xDC00
    return None
