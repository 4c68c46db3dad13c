"""Metrics of a classification, all of them functions of the cells of its confusion matrix that occur."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peft_bidora.tasks.resampling import CELLS
from peft_bidora.tasks.task import Array


@dataclass(frozen=True)
class Confusion:
    """Hold how often a class was predicted for another, where it was.

    Args:
        true: (cells,), class indices.
        predicted: (cells,), class indices.
        counts: (cells,), rows.
        classes: the number of classes.
    """

    true: Array
    predicted: Array
    counts: Array
    classes: int

    def matrix(self) -> Array:
        """Return the counts of all cells: (classes, classes), rows true, columns predicted."""
        dense = np.zeros((self.classes, self.classes), dtype=int)
        dense[self.true, self.predicted] = self.counts
        return dense


@dataclass(frozen=True)
class ClassSums:
    """Hold the rows of each class, (..., classes): those it is right for, true for, and predicted for."""

    hits: Array
    true: Array
    predicted: Array


def confusion(predicted: Array, labels: Array, classes: int) -> Confusion:
    """Return how often each class was predicted for each.

    Args:
        predicted: (rows,), class indices.
        labels: (rows,), class indices.
        classes: the number of classes.
    """
    # The last cell of the matrix is kept in any case: a multinomial draw then takes the same numbers from its generator
    # as one of the whole matrix would.
    cells, counts = np.unique(np.append(labels * classes + predicted, classes**2 - 1), return_counts=True)
    counts[-1] -= 1
    return Confusion(cells // classes, cells % classes, counts, classes)


def class_sums(found: Confusion, counts: Array | None = None) -> ClassSums:
    """Return the rows of each class.

    Args:
        found: which cells there are.
        counts: (..., cells), rows of each; None for those that were found.
    """
    from scipy.sparse import csr_array

    counts = (found.counts if counts is None else counts).astype(float)
    cells = np.arange(len(found.counts))

    def summed(places: Array, weights: Array) -> Array:
        total: Array = counts @ csr_array((weights, (cells, places)), shape=(len(cells), found.classes))
        return total

    ones = np.ones(len(cells))
    right = (found.true == found.predicted).astype(float)
    return ClassSums(summed(found.true, right), summed(found.true, ones), summed(found.predicted, ones))


def classification_scores(sums: ClassSums, names: Sequence[str] = ()) -> dict[str, Array]:
    """Return accuracy, f1_macro, f1_weighted, matthews and, of classes that are named, f1_of_NAME.

    With true positives t_k, c_k rows of class k, p_k predictions of it and n rows:
    accuracy = Σ t_k / n;  f1_k = 2 t_k / (c_k + p_k);  f1_macro = mean over the classes that occur of f1_k;
    f1_weighted = Σ c_k f1_k / n;
    matthews = (n Σ t_k − Σ c_k p_k) / sqrt((n² − Σ p_k²)(n² − Σ c_k²)), and 0 where the root is 0.

    Args:
        sums: (..., classes), t, c and p.
        names: of all classes, or of none.
    """
    hits, true, predicted = sums.hits, sums.true, sums.predicted
    rows, right = true.sum(-1), hits.sum(-1)
    occurs = true + predicted > 0
    f1 = 2 * hits / np.where(occurs, true + predicted, 1)
    root = np.sqrt((rows**2 - (predicted**2).sum(-1)) * (rows**2 - (true**2).sum(-1)))
    covariance = rows * right - (true * predicted).sum(-1)
    return {
        "accuracy": right / rows,
        "f1_macro": f1.sum(-1) / occurs.sum(-1),
        "f1_weighted": (true * f1).sum(-1) / rows,
        "matthews": np.where(root > 0, covariance / np.where(root > 0, root, 1), 0.0),
        **{f"f1_of_{name}": f1[..., k] for k, name in enumerate(names)},
    }


def resampled_classification_scores(
    found: Confusion, rng: np.random.Generator, resamples: int, names: Sequence[str] = ()
) -> dict[str, Array]:
    """Return (resamples,) values of each score over rows drawn with replacement.

    The rows of a draw fall into the cells of the confusion matrix as a multinomial draw, so none need be listed. Of the
    cells only those that occur are drawn, at most one a row: there are as many as the square of the classes.
    """
    total = int(found.counts.sum())
    step = max(1, CELLS // max(len(found.counts), found.classes))
    parts = []
    for start in range(0, resamples, step):
        drawn = rng.multinomial(total, found.counts / total, size=min(step, resamples - start))
        parts.append(classification_scores(class_sums(found, drawn), names))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def class_table(sums: ClassSums, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and the number of rows of each class; 0 where a rate has no rows.

    Args:
        sums: (classes,), of all rows.
        names: of the classes.
    """
    hits, true, predicted = sums.hits, sums.true, sums.predicted
    return [
        {
            "label": name,
            "precision": float(hits[k] / max(predicted[k], 1)),
            "recall": float(hits[k] / max(true[k], 1)),
            "f1": float(2 * hits[k] / max(true[k] + predicted[k], 1)),
            "rows": int(true[k]),
        }
        for k, name in enumerate(names)
    ]
