import csv
from hashlib import sha256

import pytest

from peft_bidora.data.readers import decode, read_csv, read_json, read_json_lines, read_tsv
from peft_bidora.errors import DataError


def test_csv_cells_stay_strings_and_an_empty_cell_is_the_empty_string() -> None:
    data = b"text,label\nNA,1\n,\nnull,1.0\n"
    table = read_csv("a.csv", data)
    assert table.columns == ("text", "label")
    assert table.rows == [
        {"text": "NA", "label": "1"},
        {"text": "", "label": ""},
        {"text": "null", "label": "1.0"},
    ]
    assert (table.lines, table.unit, table.sha256) == ([2, 3, 4], "line", sha256(data).hexdigest())


def test_csv_rows_are_numbered_by_the_line_they_begin_on() -> None:
    data = b'text,label\r\n"one\r\ntwo\r\nthree",a\r\nfour,b\r\n"a ""word"", quoted",c\r\n'
    table = read_csv("a.csv", data)
    assert [row["text"] for row in table.rows] == ["one\r\ntwo\r\nthree", "four", 'a "word", quoted']
    assert table.lines == [2, 5, 6]


def test_tsv_is_cut_at_tabs_alone() -> None:
    assert read_tsv("a.tsv", b"text\tlabel\na, b\tc\n").rows == [{"text": "a, b", "label": "c"}]


def test_csv_blank_lines_at_the_end_are_no_rows() -> None:
    assert len(read_csv("a.csv", b"text\na\n\n\r\n").rows) == 1


def test_csv_with_a_header_only_has_no_rows() -> None:
    table = read_csv("a.csv", b"text,label\n")
    assert (table.columns, table.rows) == (("text", "label"), [])


def test_csv_ragged_rows_are_reported_together_with_cells_expected_and_found() -> None:
    with pytest.raises(DataError) as caught:
        read_csv("a.csv", b'text,label\n"a\nb",1\nc\nd,2\ne,3,4\n')
    first, second = caught.value.faults
    assert first.startswith("a.csv, line 4: 1 cell, but the header has 2 ('text', 'label')")
    assert second.startswith("a.csv, line 6: 3 cells, but the header has 2")


def test_csv_cut_by_semicolons_is_told_so_also_where_its_texts_have_commas() -> None:
    with pytest.raises(DataError, match=r"line 2: 2 cells, but the header has 1 .*separated by commas.*not by ';'"):
        read_csv("a.csv", b"text;label\na, b;1\n")


def test_csv_blank_line_between_rows_is_a_ragged_row() -> None:
    with pytest.raises(DataError, match=r"a\.csv, line 3: 0 cells, but the header has 1"):
        read_csv("a.csv", b"text\na\n\nb\n")


def test_only_the_first_five_faults_are_shown_and_the_rest_is_counted() -> None:
    with pytest.raises(DataError) as caught:
        read_csv("a.csv", b"text,label\n" + b"x\n" * 8)
    assert len(caught.value.faults) == 6
    assert caught.value.faults[-1] == "a.csv: 3 more rows with such a fault."


def test_csv_duplicate_column_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.csv: .*'text' occurs more than once"):
        read_csv("a.csv", b"text,label,text\na,b,c\n")


def test_csv_blank_first_line_is_no_header() -> None:
    with pytest.raises(DataError, match=r"line 1: expected a header row with column names, found a blank line"):
        read_csv("a.csv", b"\ntext,label\na,b\n")


@pytest.mark.parametrize("row", [b'"never closed,1\nb,2\n', b'"closed" too early,1\n'])
def test_csv_broken_quoting_is_reported_at_the_line_where_its_row_begins(row: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.csv, line 3: broken quoting"):
        read_csv("a.csv", b"text,label\na,1\n" + row)


def test_csv_cells_may_be_of_any_length_and_the_global_limit_is_put_back() -> None:
    limit = csv.field_size_limit()
    table = read_csv("a.csv", b"text\n" + b"x" * 200_000 + b"\n")
    assert len(str(table.rows[0]["text"])) == 200_000
    assert csv.field_size_limit() == limit


def test_json_lines_values_keep_their_types() -> None:
    data = b'{"text": "a", "label": 1}\n{"text": null, "label": 1.0, "more": [true]}\n'
    table = read_json_lines("a.jsonl", data)
    assert table.columns == ("text", "label", "more")
    assert table.rows == [{"text": "a", "label": 1}, {"text": None, "label": 1.0, "more": [True]}]
    assert isinstance(table.rows[1]["label"], float)
    assert (table.unit, table.sha256) == ("line", sha256(data).hexdigest())


def test_json_lines_are_numbered_as_in_the_file_and_break_at_newlines_alone() -> None:
    table = read_json_lines("a.jsonl", '{"text": "a\u2028b"}\r\n\r\n{"text": "c"}'.encode())
    assert [row["text"] for row in table.rows] == ["a\u2028b", "c"]
    assert table.lines == [1, 3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', r"broken JSON \(Expecting ',' delimiter at column 13\)"),
        ('{"text": NaN}', r"NaN is not a JSON value"),
        ('{"text": -Infinity}', r"-Infinity is not a JSON value"),
        ('{"text": "a", "text": "b"}', r"an object with a key twice among 'text', 'text'"),
        ('["a"]', r"expected an object, found a list"),
        ('"a"', r"expected an object, found a string"),
        ("1", r"expected an object, found a number"),
        ("true", r"expected an object, found a boolean"),
        ("null", r"expected an object, found null"),
        ("[" * 100_000, r"broken JSON"),
    ],
    ids=lambda value: value[:20],
)
def test_json_line_that_is_no_object_is_reported_with_its_number_and_reason(line: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, line 2: .*{reason}"):
        read_json_lines("a.jsonl", f'{{"text": "a"}}\n{line}\n'.encode())


def test_all_broken_json_lines_are_reported_together() -> None:
    with pytest.raises(DataError) as caught:
        read_json_lines("a.jsonl", b'{}\n{\n{"text": "a"}\n[]\n')
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["a.jsonl, line 2", "a.jsonl, line 4"]


def test_json_list_of_objects_counts_rows() -> None:
    data = b'[\n  {"text": "a"},\n  {"text": "b", "label": false}\n]'
    table = read_json("a.json", data)
    assert table.rows == [{"text": "a"}, {"text": "b", "label": False}]
    assert (table.columns, table.lines, table.unit) == (("text", "label"), [1, 2], "row")
    assert table.sha256 == sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": 2}', r"a\.json, line 2: broken JSON \(Extra data at column 1\).*name it \.jsonl"),
        ('[{"a": Infinity}]', r"a\.json: .*Infinity is not a JSON value"),
        ('{"rows": []}', r"a\.json: expected a list of objects, found an object"),
        ('[{"a": 1}, "b"]', r"a\.json, row 2: expected an object, found a string"),
    ],
)
def test_json_file_that_is_no_list_of_objects_is_refused(content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_json("a.json", content.encode())


def test_byte_order_mark_is_accepted() -> None:
    assert read_csv("a.csv", b"\xef\xbb\xbftext,label\na,b\n").columns == ("text", "label")
    assert read_json_lines("a.jsonl", b'\xef\xbb\xbf{"text": "a"}').columns == ("text",)


@pytest.mark.parametrize("data", [b"", b" \n\r\n", b"\xef\xbb\xbf"])
def test_empty_file_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.csv is empty; expected column names and at least one row"):
        decode("a.csv", data)


def test_bytes_that_are_not_utf8_are_named_with_line_and_offset() -> None:
    with pytest.raises(DataError, match=r"a\.csv, line 2: byte 0xe9 at offset 8 is not UTF-8"):
        decode("a.csv", b"text\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"line 2: byte 0xe9 at offset 11 "):
        decode("a.csv", b"\xef\xbb\xbftext\ncaf\xe9\n")


def test_nul_bytes_are_refused_with_their_line() -> None:
    with pytest.raises(DataError, match=r"a\.csv, line 3: a NUL byte"):
        decode("a.csv", b"text\na\nb\0\n")
