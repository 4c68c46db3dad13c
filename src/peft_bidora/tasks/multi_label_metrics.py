"""Metrics of a classification with several labels a row, over rows that may count several times or not at all."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from peft_bidora.tasks.metrics import ClassSums, class_table
from peft_bidora.tasks.task import Array


def label_counts(predicted: Array, labels: Array, counts: Array) -> Array:
    """Return the confusion matrix of each class: (..., classes, 2, 2), rows true, columns predicted, "no" first.

    Args:
        predicted: (rows, classes), booleans.
        labels: (rows, classes), booleans.
        counts: (..., rows), how often each row was drawn.
    """
    cells = [[counts @ ((labels == true) & (predicted == guess)) for guess in (False, True)] for true in (False, True)]
    return np.stack([np.stack(row, axis=-1) for row in cells], axis=-2)


def multi_label_scores(predicted: Array, labels: Array, counts: Array) -> dict[str, Array]:
    """Return f1_micro, f1_macro and subset_accuracy.

    With t_k rows that have class k and get it, c_k that have it and p_k that get it:
    f1_micro = 2 Σ t_k / Σ (c_k + p_k), and 0 where no class occurs;
    f1_macro = mean over the classes that occur of 2 t_k / (c_k + p_k);
    subset_accuracy = the rows whose classes are all right and complete / rows.

    Args:
        predicted: (rows, classes), booleans.
        labels: (rows, classes), booleans.
        counts: (..., rows), how often each row was drawn.
    """
    hits = counts @ (predicted & labels)
    either = counts @ predicted + counts @ labels  # c_k + p_k: (..., classes)
    occurs = either > 0
    f1 = 2 * hits / np.where(occurs, either, 1)
    return {
        "f1_micro": 2 * hits.sum(-1) / np.maximum(either.sum(-1), 1),
        "f1_macro": f1.sum(-1) / np.maximum(occurs.sum(-1), 1),
        "subset_accuracy": counts @ (predicted == labels).all(-1) / counts.sum(-1),
    }


def table_by_label(counts: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and the number of rows that have it, of each class.

    Args:
        counts: (classes, 2, 2), as of `label_counts`.
        names: of the classes.
    """
    return class_table(ClassSums(counts[:, 1, 1], counts[:, 1].sum(-1), counts[:, :, 1].sum(-1)), names)
