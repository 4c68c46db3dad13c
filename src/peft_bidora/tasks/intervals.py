"""Percentile bootstrap intervals of a task's metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from peft_bidora.tasks.task import Task

RESAMPLES = 1000
COVERAGE = 0.95


def scores_with_intervals(
    task: Task, predictions: Sequence[Any], labels: Sequence[Any], seed: int
) -> dict[str, dict[str, float]]:
    """Return each metric as {"value", "low", "high"}: the 2.5 and 97.5 % quantiles over 1000 resamples of the rows.

    Args:
        task: whose metrics.
        predictions: (rows,), of the task.
        labels: (rows,), of the task.
        seed: the same seed gives the same intervals.
    """
    drawn = task.resampled_scores(predictions, labels, np.random.default_rng(seed), RESAMPLES)
    tail = (1 - COVERAGE) / 2
    return {
        name: {
            "value": value,
            "low": float(np.quantile(drawn[name], tail)),
            "high": float(np.quantile(drawn[name], 1 - tail)),
        }
        for name, value in task.scores(predictions, labels).items()
    }
