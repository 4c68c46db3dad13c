import io
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from peft_bidora.data.source import read_table
from peft_bidora.data.stream import open_chunks
from peft_bidora.data.table import Table
from peft_bidora.errors import DataError

Write = Callable[[str, str | bytes], Path]
ROWS = [{"text": f"row {n}", "label": str(n % 2)} for n in range(7)]
TEXTS = {
    "a.csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS),
    "a.tsv": "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS),
    "a.jsonl": "".join(json.dumps(row) + "\n\n" for row in ROWS),
    "a.ndjson": "".join(json.dumps(row) + "\n" for row in ROWS),
    "a.json": json.dumps(ROWS),
}


def chunks_of(source: str | Path, rows: int) -> list[Table]:
    with open_chunks(str(source), rows) as chunks:
        return list(chunks.tables)


def joined(tables: list[Table]) -> tuple[Any, ...]:
    rows, lines = [row for table in tables for row in table.rows], [line for table in tables for line in table.lines]
    return tables[-1].columns, rows, lines, tables[0].unit, {table.source for table in tables}


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("name", [*TEXTS, "a.parquet"])
def test_chunks_are_the_whole_table_cut(name: str, size: int, write: Write, tmp_path: Path) -> None:
    if name in TEXTS:
        path = write(name, TEXTS[name])
    else:
        path = tmp_path / name
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=3)
    whole = read_table(path)
    tables = chunks_of(path, size)
    assert joined(tables) == (whole.columns, whole.rows, whole.lines, whole.unit, {whole.source})
    assert [len(table.rows) for table in tables[:-1]] == [size] * (len(tables) - 1)


BROKEN = {
    "a.csv": (b"text,label\na,b\nc,d\ne\n", "line 4: 1 cell, but the header has 2"),
    "a.tsv": (b'text\na\nb\n"c\n', "line 4: broken quoting"),
    "a.jsonl": (b'{"text": "a"}\n{"text": "b"}\n\n[]\n', "line 4: .*expected an object, found a list"),
    "a.ndjson": (b'{"text": "a"}\n{"text": "b"}\n{"text": "\xff"}\n', "line 3: byte 0xff at offset 38 is not UTF-8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_row_stops_the_stream_with_the_message_of_the_whole_file(name: str, write: Write) -> None:
    data, message = BROKEN[name]
    path = write(name, data)
    with pytest.raises(DataError, match=message) as whole:
        read_table(path)
    with open_chunks(str(path), 2) as chunks:
        assert len(next(chunks.tables).rows) == 2
        with pytest.raises(DataError) as caught:
            next(chunks.tables)
    assert caught.value.faults == whole.value.faults


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.json", "gone.csv", "a.txt"])
def test_source_without_rows_has_the_message_of_the_whole_file(name: str, write: Write) -> None:
    contents = {"a.csv": "text,label\n", "a.jsonl": "\n", "a.parquet": "no", "a.json": "[]", "a.txt": "hello"}
    path = write(name, contents[name]) if name in contents else Path("gone.csv")
    with pytest.raises(DataError) as whole:
        read_table(path)
    with pytest.raises(DataError) as caught:
        chunks_of(path, 2)
    assert caught.value.faults == whole.value.faults


def test_parquet_that_ends_early_is_an_error_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"row {n}" for n in range(2000)]}), path, row_group_size=1000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file"):
        chunks_of(path, 100)


def test_file_that_cannot_be_opened_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.csv", "text\na\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.csv cannot be read \(Permission denied\)"):
        chunks_of(path, 2)


def test_folder_gives_the_file_of_its_split(write: Write, tmp_path: Path) -> None:
    write("train.csv", "text\ntrain row\n")
    write("test.csv", "text\ntest row\n")
    (table,) = chunks_of(tmp_path, 5)
    assert (table.rows, table.source) == ([{"text": "test row"}], str(tmp_path / "test.csv"))


def test_dash_is_json_lines_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"text": "a"}\n[]\n')))
    with open_chunks("-", 1) as chunks:
        assert next(chunks.tables).rows == [{"text": "a"}]
        assert chunks.fraction() is None
        with pytest.raises(DataError, match=r"standard input, line 2: .*expected an object"):
            next(chunks.tables)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_fraction_grows_to_one(name: str, tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"some text that is long enough {n}" for n in range(5000)]})
    path = tmp_path / name
    if name == "a.csv":
        path.write_text("text\n" + "\n".join(table["text"].to_pylist()))
    else:
        pyarrow.parquet.write_table(table, path)
    with open_chunks(str(path), 500) as chunks:
        fractions = [chunks.fraction() for _ in chunks.tables]
    # A text file is read some kilobytes ahead of its rows.
    assert fractions == pytest.approx([n / 10 for n in range(1, 11)], abs=0.06)
    assert fractions[-1] == 1


def test_parquet_source_tells_its_types(tmp_path: Path) -> None:
    kinds = pyarrow.schema([("text", pyarrow.string()), ("n", pyarrow.int16())])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "a", "n": 1}], kinds), tmp_path / "a.parquet")
    with open_chunks(str(tmp_path / "a.parquet"), 5) as chunks:
        assert chunks.schema.equals(kinds)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_memory_does_not_grow_with_the_rows(name: str, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / name
        rows = [{"text": f"text number {n} and a little more of it", "id": str(n)} for n in range(count)]
        if name == "a.csv":
            path.write_text("text,id\n" + "".join(f"{row['text']},{row['id']}\n" for row in rows))
        elif name == "a.jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        del rows
        tracemalloc.start()
        with open_chunks(str(path), 100) as chunks:
            read = sum(len(table.rows) for table in chunks.tables)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert read == count
        return most

    peak(100)  # what imports and first calls keep
    # Some 70 kB a chunk; all 20,000 rows at once would be twenty times that.
    assert peak(20_000) < 1.5 * peak(1000)
