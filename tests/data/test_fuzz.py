"""Whatever the bytes: a reader gives a table or an error of ours, and so do the checks of every task after it.

`FUZZ_SECONDS=600 pytest -m slow tests/data/test_fuzz.py` tries for ten minutes what the other tests try for seconds.
"""

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from glue_folders import write_glue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_bidora.data.columns import resolve_columns
from peft_bidora.data.examples import read_examples
from peft_bidora.data.glue import glue_rows, read_glue
from peft_bidora.data.glue_tasks import GLUE
from peft_bidora.data.readers import csv_rows, json_line_rows, tsv_rows
from peft_bidora.data.rows import RowStream
from peft_bidora.data.source import READERS
from peft_bidora.data.table import Table
from peft_bidora.errors import DataError
from peft_bidora.tasks.registry import TASKS
from peft_bidora.tasks.task import TaskOptions

Read = Callable[[str, bytes], Table]
Stream = Callable[[str, io.BytesIO], RowStream]
STREAMS: dict[str, Stream] = {".csv": csv_rows, ".tsv": tsv_rows, ".jsonl": json_line_rows}
SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
# What means something to a parser, or to none.
PIECES = [
    *(mark.encode() for mark in ('"', '""', ",", "\t", "|", "\n", "\r", "\r\n", "\\")),
    *(mark.encode() for mark in "{}[]:; #"),
    *(word.encode() for word in ("-1", "0", "1e999", "NaN", "Infinity", "null", "true", '"a"', "1_000", "0x10")),
    "\u0663".encode(),
    *(name.encode() for name in ("text", "label", '"text"', '"label"', '"tokens"', "O", "B-PER", "-DOCSTART- -X- O O")),
    *(strange.encode() for strange in ("\u2028", "\ufeff", "é", "\x85", "\0", "\x1a", "\x0b", "\x0c")),
    *(rb'"\ud800"', rb'"\u0000"', b"\xff", b"\xed\xa0\x80", b"\xef\xbb", b"\x85", b"PAR1"),
    *(b"9" * 400, b"[" * 2000, b'{"a":' * 500),
]  # fmt: skip
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(PIECES) | st.binary(max_size=4), st.integers(1, 3)),
    max_size=6,
)


def mutated(valid: bytes, edits: list[tuple[float, int, bytes, int]]) -> bytes:
    """Replace, insert, cut out and repeat pieces of a valid file."""
    data = bytearray(valid)
    for where, length, piece, times in edits:
        start = int(where * len(data))
        data[start : start + length] = piece * times
    return bytes(data)


def files(valid: list[bytes]) -> st.SearchStrategy[bytes]:
    """Any bytes; a soup of pieces; and valid files after some edits."""
    soup = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
    return st.binary(max_size=60) | soup | st.builds(mutated, st.sampled_from(valid), EDITS)


def valid_files(suffix: str) -> list[bytes]:
    rows: list[dict[str, Any]] = [
        {"text": "a film", "label": "good", "group": "1"},
        {"text": 'a "shop", a\nday', "label": "bad", "group": "2"},
        {"text": "naïve 漢字", "label": "1.0", "group": ""},
    ]
    rich: list[dict[str, Any]] = [
        {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"], "label": 1, "sequence": "MKV"},
        {"tokens": [], "ner_tags": None, "label": 2.5, "sequence": None},
        {"prompt": "say", "completion": "yes", "messages": [{"role": "user", "content": "hello"}]},
        {"meaning_representation": "name[x]", "references": ["a", "b"], "label": ["a", "b"]},
    ]
    if suffix in (".csv", ".tsv"):
        mark = "\t" if suffix == ".tsv" else ","
        quoted = ['"' + str(cell).replace('"', '""') + '"' for row in rows for cell in row.values()]
        lines = [mark.join(rows[0]), *(mark.join(quoted[n : n + 3]) for n in range(0, 9, 3))]
        return ["\n".join(lines).encode(), "\r\n".join(lines).encode(), b"text\na\n\n"]
    if suffix in (".jsonl", ".ndjson"):
        return ["".join(json.dumps(row) + "\n" for row in chosen).encode() for chosen in (rows, rich)]
    if suffix == ".json":
        return [json.dumps(chosen).encode() for chosen in (rows, rich)]
    if suffix == ".parquet":
        return [*map(_parquet, (rows, rich[:1], [{"when": None, "text": b"bytes", "n": 2**62}]))]
    conll = b"-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n"
    return [conll, conll.replace(b" ", b"\t")]


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def check(read: Read, stream: Stream | None, data: bytes) -> None:
    """Read, then look for the columns and the examples of every task; DataError alone may come."""
    try:
        table = read("a.file", data)
    except DataError:
        table = None
    if stream is not None:
        check_stream(stream, data, table)
    if table is None:
        return
    assert len(table.rows) == len(table.lines)
    assert all(set(row) <= set(table.columns) for row in table.rows)
    for kind in TASKS.values():
        with suppress(DataError):
            arranged = kind.arrange(table)
            layout = kind.layout(TaskOptions(), None)
            columns, _ = resolve_columns(arranged, None, None, None, layout)
            examples = read_examples(arranged, columns, layout, require_labels=False)
            assert len(examples) == len(arranged.rows)


def check_stream(stream: Stream, data: bytes, table: Table | None) -> None:
    """The chunks of a file are its table, cut; or both are at fault."""
    rows, lines = [], []
    try:
        for chunk in stream("a.file", io.BytesIO(data)).chunks(2):
            rows += chunk.rows
            lines += chunk.lines
    except DataError:
        assert table is None
        return
    assert table is not None
    assert (rows, lines) == (table.rows, table.lines)


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    root = tmp_path_factory.mktemp("glue")
    return {task.folder: [path.read_bytes() for path in write_glue(root, task.folder, 4).iterdir()] for task in GLUE}


def trial(name: str, official: dict[str, list[bytes]], examples: int) -> Callable[[], None]:
    """Return what tries a reader on so many files."""
    task = next((task for task in GLUE if task.folder == name), None)
    if task is None:
        read, stream, valid = READERS[name], STREAMS.get(name), valid_files(name)
    else:
        file = "train.tsv"
        read = partial(read_glue, task=task, name=file)
        stream, valid = partial(glue_rows, task=task, name=file), official[name]
    checked = given(files(valid))(lambda data: check(read, stream, data))
    return settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))(checked)


NAMES = [*READERS, *(task.folder for task in GLUE)]


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_give_a_table_or_an_error_of_ours(name: str, official: dict[str, list[bytes]]) -> None:
    trial(name, official, 60)()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_for_minutes(name: str, official: dict[str, list[bytes]]) -> None:
    end = monotonic() + SECONDS / len(NAMES)
    while monotonic() < end:
        trial(name, official, 500)()
