"""The expected calibration error: how far the confidence of a classifier is from how often it is right.

Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from dataclasses import dataclass

import numpy as np

from peft_bidora.tasks.task import Array

BINS = 15  # of equal width: (0, 1/15], (1/15, 2/15], …


@dataclass(frozen=True)
class CalibrationCells:
    """Rows counted by bin of their confidence and by whether they are right.

    Args:
        counts: (bins, 2), rows; wrong ones first.
        confidence: (bins, 2), the mean confidence of the rows in each cell; 0 where there are none.
    """

    counts: Array
    confidence: Array


def calibration_cells(probabilities: Array, labels: Array) -> CalibrationCells:
    """Return the cells of predictions.

    Args:
        probabilities: (rows, classes); the largest of a row is its confidence.
        labels: (rows,), class indices.
    """
    confidence = probabilities.max(-1)
    right = probabilities.argmax(-1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    cell = 2 * bins + right
    counts = np.bincount(cell, minlength=2 * BINS)
    sums = np.bincount(cell, weights=confidence, minlength=2 * BINS)
    return CalibrationCells(counts.reshape(BINS, 2), (sums / np.maximum(counts, 1)).reshape(BINS, 2))


def calibration_error(cells: CalibrationCells, counts: Array) -> Array:
    """Return Σ_bins |right rows − Σ confidence| / rows = Σ_bins (rows_b / rows) · |accuracy_b − confidence_b|: (...,).

    Args:
        cells: of the predictions.
        counts: (..., bins, 2), how many rows of each cell count; `cells.counts` for each once.
    """
    gaps = (counts * (np.array([0.0, 1.0]) - cells.confidence)).sum(-1)
    error: Array = np.abs(gaps).sum(-1) / counts.sum((-1, -2))
    return error


def resampled_calibration_error(cells: CalibrationCells, rng: np.random.Generator, resamples: int) -> Array:
    """Return (resamples,) calibration errors of bootstrap samples, their mean moved to the error of the rows.

    Rows drawn with replacement fall into the cells as a multinomial draw, at any number of rows. A row then counts
    with the mean confidence of its cell: what a confidence differs from that, by 1/15 at most, is left out of the
    spread. Each draw adds gaps of its own to the bins, so that the errors lie above that of the rows on average, at
    times all of them; that much is taken off, and what falls below 0 is 0.
    """
    total = int(cells.counts.sum())
    drawn = rng.multinomial(total, (cells.counts / total).ravel(), size=resamples)
    errors = calibration_error(cells, drawn.reshape(resamples, BINS, 2))
    moved: Array = np.maximum(errors - errors.mean() + calibration_error(cells, cells.counts), 0.0)
    return moved
