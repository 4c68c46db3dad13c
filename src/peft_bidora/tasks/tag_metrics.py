"""Metrics of tagged sentences, all of them functions of counts that add up over the sentences."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from peft_bidora.tasks.entities import entities
from peft_bidora.tasks.task import Array

Tags = Sequence[str]


def entity_counts(predicted: Sequence[Tags], labels: Sequence[Tags], types: Sequence[str]) -> Array:
    """Return of each sentence and type how many entities are true, predicted, and both: (rows, types, 3).

    Args:
        predicted: (rows,), the tags of a sentence's words.
        labels: the same in truth.
        types: of entities, in the order of the counts.
    """
    index = {name: position for position, name in enumerate(types)}
    counts = np.zeros((len(labels), len(types), 3))
    for row, (tags, truth) in enumerate(zip(predicted, labels, strict=True)):
        found, true = set(entities(tags)), set(entities(truth))
        for column, group in enumerate((true, found, true & found)):
            for entity in group:
                counts[row, index[entity.type], column] += 1
    return counts


def tag_counts(predicted: Sequence[Tags], labels: Sequence[Tags], names: Sequence[str]) -> Array:
    """Return of each sentence and tag how many words have it in truth, in prediction, and in both: (rows, tags, 3).

    Args:
        predicted: (rows,), the tags of a sentence's words; one that is not among the names counts for none.
        labels: the same in truth.
        names: of tags, in the order of the counts.
    """
    index = {name: position for position, name in enumerate(names)}
    counts = np.zeros((len(labels), len(names) + 1, 3))
    for row, (tags, truth) in enumerate(zip(predicted, labels, strict=True)):
        for tag, true in zip(tags, truth, strict=True):
            counts[row, index[true], 0] += 1
            counts[row, index.get(tag, -1), 1] += 1
            counts[row, index[true], 2] += tag == true
    return counts[:, :-1]


def rates(counts: Array) -> dict[str, Array]:
    """Return precision b / p, recall b / t and f1 = 2b / (t + p); a rate of nothing is 0.

    Args:
        counts: (…, 3), the t that are true, the p that are predicted, the b that are both.
    """
    true, predicted, both = np.moveaxis(counts, -1, 0)
    return {
        "precision": both / np.maximum(predicted, 1),
        "recall": both / np.maximum(true, 1),
        "f1": 2 * both / np.maximum(true + predicted, 1),
    }


def accuracy(counts: Array) -> Array:
    """Return the part of the words whose tag is right.

    Args:
        counts: (…, tags, 3), of words.
    """
    right: Array = counts[..., 2].sum(-1) / counts[..., 0].sum(-1)
    return right


def macro_f1(counts: Array) -> Array:
    """Return the mean f1 of the tags that occur in truth or prediction.

    Args:
        counts: (…, tags, 3), of words.
    """
    occurs = counts[..., :2].sum(-1) > 0
    mean: Array = rates(counts)["f1"].sum(-1) / occurs.sum(-1)
    return mean


def rate_table(counts: Array, names: Sequence[str], unit: str) -> list[dict[str, Any]]:
    """Return precision, recall and f1 by name, with the number there is in truth.

    Args:
        counts: (names, 3), over all sentences.
        names: of types of entities, or of tags.
        unit: what is counted.
    """
    columns = rates(counts)
    return [
        {"label": name, **{key: float(values[k]) for key, values in columns.items()}, unit: int(counts[k, 0])}
        for k, name in enumerate(names)
    ]
