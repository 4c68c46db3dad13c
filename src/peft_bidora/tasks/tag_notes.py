"""Tell what of the words of a split a model does not read, and what of their tags is odd."""

from typing import Any

from peft_bidora.data.examples import Examples
from peft_bidora.data.wording import counted
from peft_bidora.tasks.tag_scheme import breaks_note
from peft_bidora.tasks.word_encoding import encode_words, words_of


def encoding_notes(task: Any, tokenizer: Any, max_length: int, name: str, examples: Examples) -> list[str]:
    """Return a sentence on the words that are cut, on those without a token, and on the tags that break the scheme.

    Args:
        task: a `TokenClassification`.
        tokenizer: made ready for words.
        max_length: the most tokens of a row.
        name: of the split.
        examples: its rows.
    """
    words = words_of(examples)
    encoded = encode_words(words, tokenizer, max_length)
    cut = [len(row) - len(firsts) for row, firsts in zip(words, encoded.firsts, strict=True)]
    notes = []
    if any(cut):
        told = f"tagged {task.unread}" if task.unread else "not tagged"
        fate = "not trained on" if name in ("lower", "upper") else told
        of_rows = f"{counted(sum(cut), 'word')} of {counted(sum(map(bool, cut)), 'row')}"
        notes.append(f"{name} split: {of_rows} beyond data.max_length={max_length} tokens: {fate}.")
    if encoded.unknown:
        unknown = counted(encoded.unknown, "word")
        notes.append(f"{name} split: the tokenizer leaves nothing of {unknown}; its unknown token stands for each.")
    slips = breaks_note(examples, task.scheme)
    return notes if slips is None else [*notes, f"{name} split: {slips}"]
