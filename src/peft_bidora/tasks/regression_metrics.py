"""Metrics of a regression, over rows that may count several times or not at all."""

import numpy as np

from peft_bidora.tasks.task import Array


def regression_scores(predicted: Array, labels: Array, counts: Array) -> dict[str, Array]:
    """Return pearson, spearman, mse, mae and r2.

    With errors e = predicted − labels and means over the rows, each counted as often as it was drawn:
    mse = mean e²;  mae = mean |e|;  r2 = 1 − mse / variance of the labels;
    pearson = covariance / root of the variances;  spearman = pearson of the ranks, equal values sharing theirs.
    A correlation with a constant is 0. Where all labels are equal, r2 is 1 without any error and else 0.

    Args:
        predicted: (rows,).
        labels: (rows,).
        counts: (..., rows), how often each row was drawn.
    """
    drawn, errors = counts.sum(-1), predicted - labels
    with np.errstate(over="ignore", invalid="ignore"):  # the square of a prediction far off may be infinite
        mse = counts @ errors**2 / drawn
        variance = (counts * _centred(labels, counts) ** 2).sum(-1) / drawn
        varies = _varies(labels, counts) & (variance > 0)
        r2 = np.where(varies, 1 - mse / np.where(varies, variance, 1), np.where(mse > 0, 0.0, 1.0))
    return {
        "pearson": correlation(predicted, labels, counts),
        "spearman": correlation(ranks(predicted, counts), ranks(labels, counts), counts),
        "mse": mse,
        "mae": counts @ np.abs(errors) / drawn,
        "r2": r2,
    }


def correlation(left: Array, right: Array, counts: Array) -> Array:
    """Return Pearson's correlation over the drawn rows: (...,), 0 where a side is constant.

    Args:
        left: (rows,) or (..., rows).
        right: (rows,) or (..., rows).
        counts: (..., rows), how often each row was drawn.
    """
    x, y = _scaled(_centred(left, counts)), _scaled(_centred(right, counts))
    root = np.sqrt((counts * x * x).sum(-1)) * np.sqrt((counts * y * y).sum(-1))
    # Rounding leaves a constant a variance of 1e-33 or so, of which no correlation may be made.
    defined = _varies(left, counts) & _varies(right, counts) & (root > 0)
    found: Array = np.clip((counts * x * y).sum(-1) / np.where(defined, root, 1), -1, 1)
    return np.where(defined, found, 0.0)


def ranks(values: Array, counts: Array) -> Array:
    """Return the rank of each row among the drawn ones, from 1, the mean of its places where values are equal.

    Args:
        values: (rows,).
        counts: (..., rows), how often each row was drawn; the rank of a row that was not drawn means nothing.
    """
    distinct, group = np.unique(values, return_inverse=True)  # ascending
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    sizes = np.add.reduceat(counts[..., order], starts, axis=-1)  # (..., distinct)
    # A group of s rows whose last stands at place e has the places e − s + 1 … e.
    found: Array = (sizes.cumsum(-1) - (sizes - 1) / 2)[..., group]
    return found


def _centred(values: Array, counts: Array) -> Array:
    # First by the plain mean: rows far from zero would otherwise lose digits.
    values = values - values.mean(-1, keepdims=True)
    centred: Array = values - ((counts * values).sum(-1) / counts.sum(-1))[..., None]
    return centred


def _scaled(values: Array) -> Array:
    """Bring the largest to 1, so that no square is infinite or 0; a correlation does not see it."""
    largest = np.abs(values).max()
    return values / largest if largest > 0 else values


def _varies(values: Array, counts: Array) -> Array:
    """Whether the drawn rows have more than one value: (...,)."""
    drawn = counts > 0
    varies: Array = np.where(drawn, values, -np.inf).max(-1) > np.where(drawn, values, np.inf).min(-1)
    return varies
