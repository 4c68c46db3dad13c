"""Metrics of a classification, all of them functions of its confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def confusion(predicted: Array, labels: Array, classes: int) -> Array:
    """Return how often each class was predicted for each: (classes, classes), rows true, columns predicted.

    Args:
        predicted: (rows,), class indices.
        labels: (rows,), class indices.
        classes: the number of classes.
    """
    from sklearn.metrics import confusion_matrix

    counts: Array = confusion_matrix(labels, predicted, labels=np.arange(classes))
    return counts


def resample(counts: Array, rng: np.random.Generator, resamples: int) -> Array:
    """Return confusion matrices of bootstrap samples: (resamples, classes, classes).

    Rows drawn with replacement fall into the cells of the matrix as a multinomial draw, so none need be listed.
    """
    total = int(counts.sum())
    drawn = rng.multinomial(total, (counts / total).ravel(), size=resamples)
    return drawn.reshape(resamples, *counts.shape)


def classification_scores(counts: Array) -> dict[str, Array]:
    """Return accuracy, f1_macro, f1_weighted and matthews of confusion matrices.

    With true positives t_k, c_k rows of class k, p_k predictions of it and n rows:
    accuracy = Σ t_k / n;  f1_k = 2 t_k / (c_k + p_k);  f1_macro = mean over the classes that occur of f1_k;
    f1_weighted = Σ c_k f1_k / n;
    matthews = (n Σ t_k − Σ c_k p_k) / sqrt((n² − Σ p_k²)(n² − Σ c_k²)), and 0 where the root is 0.

    Args:
        counts: (..., classes, classes), rows true, columns predicted.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(float)
    true, predicted = counts.sum(-1).astype(float), counts.sum(-2).astype(float)
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
    }


def class_table(counts: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and the number of rows of each class; 0 where a rate has no rows.

    Args:
        counts: (classes, classes), rows true, columns predicted.
        names: of the classes.
    """
    hits, true, predicted = np.diagonal(counts).astype(float), counts.sum(1), counts.sum(0)
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
