"""Count texts that occur again: within a file, with another label, or in another file."""

from collections import Counter
from collections.abc import Hashable, Iterable

from peft_bidora.data.examples import Examples

TextKey = tuple[Hashable, ...]


def text_keys(examples: Examples) -> list[TextKey]:
    """Return what makes two rows the same: their texts without blanks at the ends, one or both of a pair."""
    return [tuple(text.strip() if isinstance(text, str) else text for text in texts) for texts in examples.texts]


def overlap(training: Iterable[Examples], held_out: Examples) -> int:
    """Return the number of held-out rows whose text, or pair of texts, occurs in one of the training splits."""
    seen = {key for examples in training for key in text_keys(examples)}
    return sum(key in seen for key in text_keys(held_out))


def duplicates(examples: Examples) -> int:
    """Return the number of rows that repeat the text of an earlier row."""
    return len(examples) - len(set(text_keys(examples)))


def conflicting(examples: Examples) -> int:
    """Return the number of texts that occur with more than one label."""
    labelled = set(zip(text_keys(examples), examples.required_labels(), strict=True))
    return sum(count > 1 for count in Counter(key for key, _ in labelled).values())
