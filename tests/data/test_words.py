from typing import Any

import pytest

from peft_bidora.data.columns import Columns, resolve_columns
from peft_bidora.data.examples import Examples, read_examples
from peft_bidora.data.repeats import duplicates, overlap
from peft_bidora.data.split import split_hash
from peft_bidora.data.table import table_of_rows
from peft_bidora.data.words import WORDS, read_tags, read_words
from peft_bidora.errors import DataError


def read(*rows: dict[str, Any]) -> Examples:
    table = table_of_rows("a.jsonl", dict.fromkeys(key for row in rows for key in row), list(rows), None)
    columns, _ = resolve_columns(table, None, None, None, WORDS)
    return read_examples(table, columns, WORDS)


def test_rows_hold_their_words_and_tags() -> None:
    examples = read({"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]}, {"tokens": ["c"], "ner_tags": ["O"]})
    assert examples.texts == [(("a", "b"),), (("c",),)]
    assert examples.labels == [("O", "B-x"), ("O",)]


def test_numbers_of_classes_become_their_names() -> None:
    assert read_tags([0, 1.0, "2"], "tags") == ("0", "1", "2")


def test_tag_with_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(DataError, match=r"half a surrogate pair in 'tags' .*Write these tags again"):
        read({"tokens": ["a", "b"], "tags": ["O", "B-\ud800"]})


@pytest.mark.parametrize("tags", ["ner_tags", "tags", "labels", "label", "pos_tags", "chunk_tags", "upos"])
@pytest.mark.parametrize("words", ["tokens", "words", "forms"])
def test_columns_are_guessed_by_name_or_content(words: str, tags: str) -> None:
    table = table_of_rows("a.jsonl", ("id", tags, words), [{"id": "1", tags: ["O"], words: ["a"]}], None)
    assert resolve_columns(table, None, None, None, WORDS)[0] == Columns((words,), tags)


def test_several_columns_of_tags_are_in_doubt() -> None:
    row = {"tokens": ["a"], "pos_tags": ["NN"], "ner_tags": ["O"]}
    with pytest.raises(DataError, match=r"'ner_tags', 'pos_tags' could each be the label\. Set data\.label"):
        read(row)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (None, "no words in 'tokens' .*every row needs a list of words"),
        ("", "no words in 'tokens'"),
        ("a b", "a string for the words in 'tokens' .*lists of strings.*JSON Lines, Parquet or CoNLL"),
        ({"a": 1}, "an object for the words in 'tokens'"),
        ([], "an empty list of words in 'tokens' .*at least one word"),
        (["a", 1], "a number among the words in 'tokens' .*a word is a string"),
        (["a", None], "a NoneType among the words"),
        (["a", " "], "an empty word in 'tokens'"),
        (["a", "\ud800"], "half a surrogate pair in 'tokens'"),
    ],
)
def test_words_at_fault_are_refused_with_their_rows(words: object, message: str) -> None:
    good = {"tokens": ["a", "b"], "tags": ["O", "O"]}
    with pytest.raises(DataError, match=message) as caught:
        read(good, {"tokens": words, "tags": ["O", "O"]})
    assert "(row 2)" in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (None, "no tags in 'tags'"),
        ("O O", "a string for the tags in 'tags'"),
        ([], "an empty list of tags in 'tags'"),
        (["O", ""], "an empty tag in 'tags' .*every word needs a tag"),
        (["O", None], "an empty tag in 'tags'"),
        (["O", 0.5], "a number that is no integer among the tags in 'tags'"),
        (["O", ["O"]], "a list among the tags in 'tags'"),
        (["O"], "fewer tags than words .*every word needs one tag"),
        (["O"] * 3, "more tags than words"),
    ],
)
def test_tags_at_fault_are_refused_with_their_rows(tags: object, message: str) -> None:
    good = {"tokens": ["a", "b"], "tags": ["O", "O"]}
    with pytest.raises(DataError, match=message) as caught:
        read(good, {"tokens": ["a", "b"], "tags": tags})
    assert "(row 2)" in str(caught.value)


def test_rows_without_tags_are_read_where_none_are_required() -> None:
    table = table_of_rows("a.jsonl", ("tokens",), [{"tokens": ["a"]}], None)
    assert read_examples(table, Columns(("tokens",), None), WORDS, require_labels=False).labels is None


def test_repeated_sentences_are_counted_and_hashed() -> None:
    rows = [{"tokens": words, "tags": ["O"] * len(words)} for words in (["a", "b"], ["a", "b"], ["ab"])]
    examples = read(*rows)
    assert duplicates(examples) == 1
    assert overlap([examples.take([0])], examples.take([1, 2])) == 1
    assert split_hash(examples, [0]) == split_hash(examples, [1]) != split_hash(examples, [2])


def test_word_is_kept_as_it_is_written() -> None:
    assert read_words([" a", "b\u00a0c"], "tokens") == (" a", "b\u00a0c")
