from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_bidora.data.conll import SUFFIXES, read_conll
from peft_bidora.data.source import find_split_files, read_table
from peft_bidora.data.stream import open_chunks
from peft_bidora.errors import DataError

Write = Callable[[str, str | bytes], Path]
PLAIN = b"Anna B-per\nsleeps O\n\nin O\nOslo B-loc\n"
READ = [
    {"tokens": ["Anna", "sleeps"], "tags": ["B-per", "O"]},
    {"tokens": ["in", "Oslo"], "tags": ["O", "B-loc"]},
]


def test_sentences_become_rows_numbered_by_their_first_line() -> None:
    table = read_conll("a.conll", b"\n\n" + PLAIN + b"\n \n\t\n")
    assert (table.columns, table.rows) == (("tokens", "tags"), READ)
    assert (table.lines, table.unit) == ([3, 6], "line")
    assert table.sha256 == sha256(b"\n\n" + PLAIN + b"\n \n\t\n").hexdigest()


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.replace(b" ", b"\t"),
        PLAIN.replace(b" ", b"  \t "),
        PLAIN.replace(b"\n", b"\r\n"),
        PLAIN.removesuffix(b"\n"),
        b"\xef\xbb\xbf" + PLAIN,
        b"-DOCSTART- O\n\n" + PLAIN.replace(b"\n\n", b"\n-DOCSTART- -X- O O\n"),
        b"# sent_id = 1\n" + PLAIN.replace(b"\n\n", b"\n\n# a comment of many words\n"),
    ],
    ids=["tabs", "blanks and tabs", "CRLF", "no end", "BOM", "DOCSTART", "comments"],
)
def test_layouts_of_one_content_are_read_alike(data: bytes) -> None:
    assert read_conll("a.conll", data).rows == READ


@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize("between", [{"column_2": "NN"}, {"column_2": "NN", "column_3": "B-NP"}])
def test_columns_between_word_and_tag_are_kept(between: dict[str, str], separator: str) -> None:
    cells = separator.join(["", *between.values(), ""])
    table = read_conll("a.conll", PLAIN.replace(b" ", cells.encode()))
    assert table.columns == ("tokens", *between, "tags")
    assert table.rows == [{**row, **{name: [tag] * 2 for name, tag in between.items()}} for row in READ]


def test_comment_does_not_part_a_sentence() -> None:
    assert read_conll("a.conll", b"Anna O\n# sent_id = 1\nsleeps O\n").rows == [
        {"tokens": ["Anna", "sleeps"], "tags": ["O", "O"]}
    ]


@pytest.mark.parametrize("data", [b"#a\tB-x\n#\tO\ngo\tNN\n", b"#a B-x\n# O\ngo NN\n", b"#a NN\n# NN\ngo NN\n"])
def test_hashtag_with_the_columns_of_a_word_is_one(data: bytes) -> None:
    (row,) = read_conll("a.conll", data).rows
    assert row["tokens"] == ["#a", "#", "go"]


@pytest.mark.parametrize("separator", [b"\t", b" "])
def test_hashtags_alone_are_words(separator: bytes) -> None:
    data = b"# id 1\n#a" + separator + b"B-x\n#b" + separator + b"O\n"
    assert read_conll("a.conll", data).rows == [{"tokens": ["#a", "#b"], "tags": ["B-x", "O"]}]


def test_line_with_a_hash_and_no_tag_is_a_comment_though_it_has_two_columns() -> None:
    assert read_conll("a.conll", b"# newdoc\ngo VB\n").rows == [{"tokens": ["go"], "tags": ["VB"]}]


def test_single_column_has_words_without_tags() -> None:
    table = read_conll("a.conll", b"# id 7\n#now\nAnna\n\nsleeps\n")
    assert table.columns == ("tokens",)
    assert table.rows == [{"tokens": ["#now", "Anna"]}, {"tokens": ["sleeps"]}]


def test_blanks_within_words_and_line_separators_do_not_cut() -> None:
    (row,) = read_conll("a.conll", "New York\tB-loc\nten\u00a0km\tO\na\u2028b\tO\n".encode()).rows
    assert row["tokens"] == ["New York", "ten\u00a0km", "a\u2028b"]
    (row,) = read_conll("a.conll", "ten\u00a0km O\n".encode()).rows
    assert row["tokens"] == ["ten\u00a0km"]


def test_all_faulty_lines_are_reported_at_once_with_their_numbers() -> None:
    with pytest.raises(DataError) as caught:
        read_conll("a.conll", b"a\tO\nb\n\nc\tO\n\tO\nd\tx\tO\ne\t\n")
    assert caught.value.faults == (
        "a.conll, line 2: 1 column, but the file has 2. Give each word a line of its own, with a tab between the"
        " columns.",
        "a.conll, line 5: no word in the first column. Fill it, or remove the line.",
        "a.conll, line 6: 3 columns, but the file has 2. Give each word a line of its own, with a tab between the"
        " columns.",
        "a.conll, line 7: no tag in the last column. Fill it, or remove the line.",
    )


def test_many_columns_are_refused_with_what_was_expected() -> None:
    with pytest.raises(DataError, match=r"a\.conll has 10 columns; expected the word alone, or 2 to 4 columns"):
        read_conll("a.conll", b"\t".join(b"%d" % n for n in range(10)) + b"\n")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"word \xff\n"])
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.conll"):
        read_conll("a.conll", data)


def test_file_of_comments_alone_has_no_rows(write: Write) -> None:
    with pytest.raises(DataError, match=r"'tokens'.* but no rows"):
        read_table(write("a.conll", "# id = 1\n-DOCSTART- O\n"))


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".CoNLL", ".txt", ".tsv"])
def test_suffixes_of_conll_are_read(suffix: str, write: Write) -> None:
    assert read_table(write(f"train{suffix}", PLAIN)).rows == READ


@pytest.mark.parametrize(
    "text", ["the end is O\n", "go VB\nnow RB\n", "Anna B-per\n", "Anna B-per\nsleeps O\nnow\n", "a b c d O\nB-x\n"]
)
def test_text_that_may_be_no_conll_is_refused_with_a_way_out(text: str, write: Write) -> None:
    with pytest.raises(DataError, match=r"unknown suffix '\.txt'.*name it \.conll if each line has a word and its tag"):
        read_table(write("train.txt", text))


def test_table_of_texts_stays_a_table(write: Write) -> None:
    assert read_table(write("a.tsv", "text\tlabel\nfine\tO\nbad\tB\n")).columns == ("text", "label")


def test_folder_gives_its_conll_files_and_no_other_text(write: Write, tmp_path: Path) -> None:
    for name, content in (("train.txt", PLAIN), ("valid.txt", PLAIN), ("test.bio", PLAIN), ("training.txt", b"hello")):
        write(name, content)
    found = find_split_files(tmp_path)
    assert {split: path.name for split, path in found.items()} == {
        "train": "train.txt",
        "validation": "valid.txt",
        "test": "test.bio",
    }


def test_missing_text_file_is_no_hub_name() -> None:
    with pytest.raises(DataError, match=r"gone/train\.txt does not exist"):
        read_table("gone/train.txt")


@pytest.mark.parametrize("size", [1, 2, 500])
def test_sentences_are_streamed_in_chunks(size: int, write: Write) -> None:
    path = write("a.conll", b"# more lines than the columns are told by\n" + PLAIN * 500)
    whole = read_table(path)
    with open_chunks(str(path), size) as chunks:
        tables = list(chunks.tables)
    assert [row for table in tables for row in table.rows] == whole.rows
    assert [line for table in tables for line in table.lines] == whole.lines
    assert all(len(table.rows) <= size for table in tables)


WORD = st.text(st.characters(exclude_categories=("Cs", "Z", "C")), min_size=1).filter(lambda word: word[0] not in "-#")
SENTENCES = st.lists(st.lists(st.tuples(WORD, st.sampled_from(["O", "B-x", "I-x"])), min_size=1), min_size=1)


@settings(max_examples=30)
@given(SENTENCES, st.sampled_from(["\t", " ", "\tNN\t", " _ _ "]))
def test_written_sentences_are_read_back(sentences: list[list[tuple[str, str]]], separator: str) -> None:
    text = "\n".join("".join(f"{word}{separator}{tag}\n" for word, tag in sentence) for sentence in sentences)
    rows = read_conll("a.conll", text.encode()).rows
    assert [row["tokens"] for row in rows] == [[word for word, _ in sentence] for sentence in sentences]
    assert [row["tags"] for row in rows] == [[tag for _, tag in sentence] for sentence in sentences]


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        table = read_conll("a.conll", data)
    except DataError:
        return
    assert all(row["tokens"] for row in table.rows)
