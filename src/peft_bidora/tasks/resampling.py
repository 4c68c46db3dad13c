"""Scores of bootstrap samples, from how often each row was drawn."""

from collections.abc import Callable, Iterator

import numpy as np

from peft_bidora.tasks.task import Array

CELLS = 1_000_000  # rows · resamples that are held at a time: 8 MB an array


def resampled(
    scores: Callable[[Array], dict[str, Array]], rows: int, rng: np.random.Generator, resamples: int
) -> dict[str, Array]:
    """Return (resamples,) values of each score over rows drawn with replacement.

    Args:
        scores: (draws, rows), how often each row was drawn -> (draws,) values of each score.
        rows: the number of rows, of which as many are drawn.
        rng: of the draws.
        resamples: the number of draws.
    """
    parts = [scores(counts) for counts in _draws(rows, rng, resamples)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draws(rows: int, rng: np.random.Generator, resamples: int) -> Iterator[Array]:
    """Yield (draws, rows) counts until there are `resamples` of them."""
    step = max(1, CELLS // rows)
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        picks = rng.integers(0, rows, (draws, rows)) + rows * np.arange(draws)[:, None]
        yield np.bincount(picks.ravel(), minlength=draws * rows).reshape(draws, rows).astype(float)
