"""Parse CoNLL files: a word a line, its tag in the last column, a blank line between sentences."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from peft_bidora.data.lines import text_lines
from peft_bidora.data.rows import NumberedRow, RowStream
from peft_bidora.data.table import Row, Table
from peft_bidora.data.wording import counted
from peft_bidora.errors import DataError

SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".bioes")
TOKENS, TAGS = "tokens", "tags"
MOST_COLUMNS = 4
DOCUMENT_START = "-DOCSTART-"
ENTITY_TAG = re.compile(r"O|[BIES](-\S+)?")
HEAD_LINES = 2000  # enough to know the columns by


class _Line(NamedTuple):
    number: int
    cells: list[str]  # empty where the line parts sentences


@dataclass(frozen=True)
class _Form:
    """How a file is laid out.

    Args:
        by_tabs: whether tabs separate the columns, else blanks.
        width: the number of columns.
        tags: what stands in the last column of the first lines.
    """

    by_tabs: bool
    width: int
    tags: frozenset[str]


def read_conll(source: str, data: bytes) -> Table:
    """Read sentences by the rules of `conll_rows`."""
    return conll_rows(source, io.BytesIO(data)).table(sha256(data).hexdigest())


def conll_rows(source: str, stream: BinaryIO) -> RowStream:
    """Stream sentences as rows of `tokens` and `tags`, each numbered by the line of its first word.

    The columns are separated by tabs or by blanks; the first holds the word, the last the tag, and those between become
    `column_2` and `column_3`. A file of a single column has no tags. Lines of `-DOCSTART-` are skipped, and so are
    lines that begin with `#`, unless they have the columns of a word: `#travel<TAB>O` is one. A line of another number
    of columns, or without a word or a tag, is a fault.

    Args:
        source: what the user named.
        stream: of the file's bytes.

    Raises:
        DataError: there are more than four columns, or (on the way) the file is not UTF-8 text.
    """
    texts = enumerate(text_lines(source, stream), start=1)
    head = list(islice(texts, HEAD_LINES))
    form = _form([text for _, text in head])
    if form.width > MOST_COLUMNS:
        raise DataError(
            f"{source} has {form.width} columns; expected the word alone, or 2 to {MOST_COLUMNS} columns with the word"
            " first and its tag last. Keep these two."
        )
    lines = (_Line(number, _cells(text, form.by_tabs)) for number, text in chain(head, texts))
    kept = (line for line in lines if not _is_comment(line.cells, form))
    return RowStream(source, _rows(source, kept, form), _columns(form))


def is_conll(path: Path) -> bool:
    """Return whether a file of any name is CoNLL beyond doubt: 2 to 4 columns, the last with `O` and entity tags."""
    try:
        with path.open("rb") as file:
            head = list(islice(text_lines(str(path), file), HEAD_LINES))
    except (OSError, DataError):
        return False  # whoever reads it will say why it cannot be
    form = _form(head)
    words = [cells for cells in (_cells(text, form.by_tabs) for text in head) if cells and not _is_comment(cells, form)]
    unmistakable = "O" in form.tags and len(form.tags) > 1 and all(map(ENTITY_TAG.fullmatch, form.tags))
    return unmistakable and 1 < form.width <= MOST_COLUMNS and {len(cells) for cells in words} == {form.width}


def _form(head: Iterable[str]) -> _Form:
    """Tell the form by the lines that are no comments; where all begin with `#`, by those with tabs or a tag."""
    filled = [text for text in head if text.strip()]
    by_tabs = 2 * sum("\t" in text.rstrip() for text in filled) > len(filled)
    rows = [cells for cells in (_cells(text, by_tabs) for text in filled) if cells]
    sure = [cells for cells in rows if not cells[0].startswith("#")]
    rows = sure or [cells for cells in rows if by_tabs or ENTITY_TAG.fullmatch(cells[-1])]
    widths = Counter(map(len, rows))
    return _Form(by_tabs, widths.most_common(1)[0][0] if widths else 1, frozenset(cells[-1] for cells in rows))


def _cells(text: str, by_tabs: bool) -> list[str]:
    """Return the columns of a line; none of one that parts sentences."""
    text = text.rstrip("\r\n")
    # str.split() would also break at no-break spaces, which may stand in a word.
    cells = [cell.strip() for cell in text.split("\t")] if by_tabs else re.split("[ \t]+", text.strip(" \t"))
    return cells if any(cells) and cells[0] != DOCUMENT_START else []


def _is_comment(cells: list[str], form: _Form) -> bool:
    """Return whether a line begins with `#` and has not the columns of a word: `# note` in a file of two has not."""
    if not cells or not cells[0].startswith("#"):
        return False
    like_a_word = form.width == 1 or form.by_tabs or cells[-1] in form.tags or ENTITY_TAG.fullmatch(cells[-1])
    return len(cells) != form.width or not like_a_word


def _rows(source: str, lines: Iterator[_Line], form: _Form) -> Iterator[NumberedRow]:
    sentence: list[_Line] = []
    for line in chain(lines, [_Line(0, [])]):
        if line.cells:
            sentence.append(line)
            continue
        faults = [(number, fault) for number, cells in sentence if (fault := _fault(source, number, cells, form))]
        yield from faults
        if sentence and not faults:
            yield sentence[0].number, _row(sentence, form)
        sentence = []


def _fault(source: str, number: int, cells: list[str], form: _Form) -> str | None:
    if len(cells) != form.width:
        return (
            f"{source}, line {number}: {counted(len(cells), 'column')}, but the file has {form.width}. Give each word a"
            " line of its own, with a tab between the columns."
        )
    if not cells[0] or not cells[-1]:
        what = "word in the first" if not cells[0] else "tag in the last"
        return f"{source}, line {number}: no {what} column. Fill it, or remove the line."
    return None


def _row(sentence: list[_Line], form: _Form) -> Row:
    return {name: [line.cells[place] for line in sentence] for place, name in enumerate(_columns(form))}


def _columns(form: _Form) -> tuple[str, ...]:
    between = (f"column_{place}" for place in range(2, form.width))
    return (TOKENS,) if form.width == 1 else (TOKENS, *between, TAGS)
