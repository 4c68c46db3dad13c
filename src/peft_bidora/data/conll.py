"""Parse CoNLL files: a word a line, its tag in the last column, a blank line between sentences."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from peft_bidora.data.readers import decode
from peft_bidora.data.table import Row, Table
from peft_bidora.data.wording import counted, places
from peft_bidora.errors import DataError

SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".bioes")
TOKENS, TAGS = "tokens", "tags"
MOST_COLUMNS = 4
DOCUMENT_START = "-DOCSTART-"
ENTITY_TAG = re.compile(r"O|[BIES](-\S+)?")
HEAD_BYTES = 65536


class _Line(NamedTuple):
    number: int
    cells: list[str]


def read_conll(source: str, data: bytes) -> Table:
    """Read sentences into rows of `tokens` and `tags`, each numbered by the line of its first word.

    The columns are separated by tabs or by blanks; the first holds the word, the last the tag, and those between are
    passed over. A file of a single column has no tags. Lines of `-DOCSTART-` are skipped, and so are lines that begin
    with `#`, unless they have the columns of a word: `#travel<TAB>O` is one.

    Raises:
        DataError: not UTF-8 text, more than four columns, lines of another number of columns, no word or no tag in a
            line.
    """
    by_tabs, sentences = _sentences(decode(source, data))
    words = [line for sentence in sentences for line in sentence if not _may_be_comment(line)]
    width = _usual_width(words or [line for sentence in sentences for line in sentence])
    if width > MOST_COLUMNS:
        raise DataError(
            f"{source} has {width} columns; expected the word alone, or 2 to {MOST_COLUMNS} columns with the word first"
            " and its tag last. Keep these two."
        )
    known_tags = {line.cells[-1] for line in words}
    kept = [
        [line for line in sentence if not _may_be_comment(line) or _is_word(line, width, by_tabs, known_tags)]
        for sentence in sentences
    ]
    kept = [sentence for sentence in kept if sentence]
    faults = list(_faults(source, [line for sentence in kept for line in sentence], width))
    if faults:
        raise DataError(*faults)
    rows: list[Row] = [_row(sentence, width) for sentence in kept]
    columns = (TOKENS,) if width == 1 else (TOKENS, TAGS)
    return Table(source, columns, rows, [sentence[0].number for sentence in kept], "line", sha256(data).hexdigest())


def is_conll(path: Path) -> bool:
    """Return whether a file of any name is CoNLL beyond doubt: 2 to 4 columns, the last with `O` and entity tags."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        text = head.rpartition(b"\n")[0].decode() if len(head) == HEAD_BYTES else head.decode()
    except (OSError, UnicodeDecodeError):
        return False
    words = [line for sentence in _sentences(text)[1] for line in sentence if not _may_be_comment(line)]
    widths = {len(line.cells) for line in words}
    tags = {line.cells[-1] for line in words}
    unmistakable = "O" in tags and len(tags) > 1 and all(ENTITY_TAG.fullmatch(tag) for tag in tags)
    return unmistakable and len(widths) == 1 and widths <= set(range(2, MOST_COLUMNS + 1))


def _sentences(text: str) -> tuple[bool, list[list[_Line]]]:
    """Return whether tabs separate the columns, and the lines of each sentence, comments among them."""
    # str.splitlines would also break at U+2028 and its like, which may stand in a word.
    lines = [line.rstrip("\r") for line in text.split("\n")]
    filled = [line for line in lines if line.strip()]
    by_tabs = 2 * sum("\t" in line for line in filled) > len(filled)
    sentences: list[list[_Line]] = [[]]
    for number, line in enumerate(lines, start=1):
        cells = _cells(line, by_tabs)
        if line.strip() and cells[0] != DOCUMENT_START:
            sentences[-1].append(_Line(number, cells))
        elif sentences[-1]:
            sentences.append([])
    return by_tabs, sentences


def _cells(line: str, by_tabs: bool) -> list[str]:
    # str.split() would also break at no-break spaces, which may stand in a word.
    return [cell.strip() for cell in line.split("\t")] if by_tabs else re.split("[ \t]+", line.strip(" \t"))


def _usual_width(lines: Iterable[_Line]) -> int:
    widths = Counter(len(line.cells) for line in lines)
    return widths.most_common(1)[0][0] if widths else 1


def _may_be_comment(line: _Line) -> bool:
    return line.cells[0].startswith("#")


def _is_word(line: _Line, width: int, by_tabs: bool, known_tags: set[str]) -> bool:
    """Return whether a line that begins with `#` has the columns of a word; `# note` in a file of two has not."""
    if len(line.cells) != width:
        return False
    tag = line.cells[-1]
    return width == 1 or by_tabs or tag in known_tags or ENTITY_TAG.fullmatch(tag) is not None


def _row(sentence: list[_Line], width: int) -> Row:
    row: Row = {TOKENS: [line.cells[0] for line in sentence]}
    return row if width == 1 else {**row, TAGS: [line.cells[-1] for line in sentence]}


def _faults(source: str, lines: list[_Line], width: int) -> Iterator[str]:
    ragged: dict[int, list[int]] = {}
    for line in lines:
        if len(line.cells) != width:
            ragged.setdefault(len(line.cells), []).append(line.number)
    for found, numbers in ragged.items():
        yield (
            f"{source}: {_lines_have(numbers)} {counted(found, 'column')} ({places('line', numbers)}), but the others"
            f" have {width}. Give each word a line of its own, with a tab between the columns."
        )
    for what, cell in (("no word in the first column", 0), ("no tag in the last column", -1)):
        empty = [line.number for line in lines if len(line.cells) == width and not line.cells[cell]]
        if empty:
            yield (
                f"{source}: {_lines_have(empty)} {what} ({places('line', empty)}); a word and its tag are needed."
                " Remove or fill them."
            )


def _lines_have(numbers: list[int]) -> str:
    return f"{counted(len(numbers), 'line')} {'has' if len(numbers) == 1 else 'have'}"
