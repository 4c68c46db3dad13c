"""The tags that a model gives to the words of a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peft_bidora.tasks.entities import Entity, entities
from peft_bidora.tasks.task import Array


@dataclass(frozen=True)
class Tagging:
    """What was predicted of a row.

    Args:
        tags: of each word that the model read, or of every word.
        probabilities: of each of these tags; None of a word that the model did not read.
        words: of the row; empty where a prediction is for scoring alone.
    """

    tags: tuple[str, ...]
    probabilities: tuple[float | None, ...]
    words: tuple[str, ...] = ()

    def filled(self, words: int, unread: str) -> tuple[str, ...]:
        """Return a tag for every word of the row, of which the model has read the first ones."""
        return (*self.tags, *[unread] * (words - len(self.tags)))

    def of_words(self, words: Sequence[str], unread: str) -> "Tagging":
        """Return the same with the words, and a tag for each of them."""
        missing = [None] * (len(words) - len(self.tags))
        return Tagging(self.filled(len(words), unread), (*self.probabilities, *missing), tuple(words))


def decode_tags(logits: Array, is_word: Array, names: Sequence[str]) -> list[Tagging]:
    """Return the most probable tag of each word.

    Args:
        logits: (rows, tokens, tags).
        is_word: (rows, tokens), true at the first subword of a word.
        names: of the tags.
    """
    from scipy.special import softmax

    found = []
    for row, marks in zip(logits, is_word, strict=True):
        probabilities = softmax(row[marks].astype(np.float64), axis=-1)
        tags = tuple(names[best] for best in probabilities.argmax(-1))
        found.append(Tagging(tags, tuple(probabilities.max(-1).tolist())))
    return found


def told_entities(tagging: Tagging) -> list[dict[str, object]]:
    """Return the entities of a row with the keys of transformers' token-classification pipeline.

    `entity_group` is the type, `score` the mean probability of the tags, `word` the words, `start` and `end` their
    place in " ".join(words), by characters.
    """
    return [_told(entity, tagging) for entity in entities(tagging.tags)]


def _told(entity: Entity, tagging: Tagging) -> dict[str, object]:
    start = sum(len(word) + 1 for word in tagging.words[: entity.start])
    word = " ".join(tagging.words[entity.start : entity.end])
    return {
        "entity_group": entity.type,
        "score": float(np.mean(np.array(tagging.probabilities[entity.start : entity.end], dtype=float))),
        "word": word,
        "start": start,
        "end": start + len(word),
    }
