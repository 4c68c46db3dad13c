"""Read the rows of a token task: a list of words, and a list with the tag of each."""

from typing import Any

from peft_bidora.data.columns import Layout
from peft_bidora.data.faults import Fault, is_empty, kind_of
from peft_bidora.data.fields import SURROGATE, name_of

AS_LISTS = "they are lists of strings. Write the file as JSON Lines, Parquet or CoNLL."


def read_words(value: object, column: str) -> tuple[str, ...] | Fault:
    """Return the words of a row: a list of strings, none of them blank."""
    if fault := _list_fault("words", value, column):
        return fault
    assert isinstance(value, list | tuple)
    for word in value:
        if not isinstance(word, str):
            return Fault(f"{kind_of(word)} among the words in {column!r}", "a word is a string. Convert them.")
        if not word.strip():
            return Fault(f"an empty word in {column!r}", "a word has letters. Remove these words and their tags.")
        if SURROGATE.search(word):
            return Fault(f"half a surrogate pair in {column!r}", "that is no character. Write these words again.")
    return tuple(value)


def read_tags(value: object, column: str) -> tuple[str, ...] | Fault:
    """Return the tag of each word: a list of strings, or of integers that number classes."""
    if fault := _list_fault("tags", value, column):
        return fault
    assert isinstance(value, list | tuple)
    names = []
    for tag in value:
        if is_empty(tag):
            return Fault(f"an empty tag in {column!r}", "every word needs a tag. Fill them, with O for no entity.")
        name = name_of(tag)
        if name is None:
            return Fault(
                f"{kind_of(tag)} among the tags in {column!r}", "a tag is a string or an integer. Convert them."
            )
        if SURROGATE.search(name):
            return Fault(f"half a surrogate pair in {column!r}", "that is no character. Write these tags again.")
        names.append(name)
    return tuple(names)


def check_lengths(texts: tuple[Any, ...], tags: tuple[str, ...]) -> Fault | None:
    """Return what is wrong between the words and the tags of a row."""
    words = len(texts[0])
    if words == len(tags):
        return None
    compared = "fewer tags than words" if len(tags) < words else "more tags than words"
    return Fault(compared, "every word needs one tag. Correct them.")


WORDS = Layout(
    wanted="a list of words",
    text=read_words,
    label=read_tags,
    text_names=("tokens", "words"),
    pair_names=(),
    label_names=("ner_tags", "tags", "labels", "label", "ner", "pos_tags", "chunk_tags", "upos", "xpos"),
    label_aliases=("ner_tags", "tags", "labels"),
    check=check_lengths,
)


def _list_fault(what: str, value: object, column: str) -> Fault | None:
    if value is None or value == "":
        return Fault(f"no {what} in {column!r}", f"every row needs a list of {what}. Remove or fill them.")
    if not isinstance(value, list | tuple):
        return Fault(f"{kind_of(value)} for the {what} in {column!r}", AS_LISTS)
    if not value:
        return Fault(f"an empty list of {what} in {column!r}", "every row needs at least one word. Remove them.")
    return None
