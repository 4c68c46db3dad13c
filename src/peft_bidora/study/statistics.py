"""Whether two methods differ, from values that are paired by seed or by fold.

References: Wilcoxon, Biometrics Bulletin 1(6), 1945; Holm, Scandinavian Journal of Statistics 6(2), 1979; Efron,
Journal of the American Statistical Association 82, 1987 (BCa); Nadeau and Bengio, Machine Learning 52, 2003.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 9999
COVERAGE = 0.95
DIGITS = 12  # values such as accuracies differ by multiples of 1/rows: what rounding makes unequal is a tie


@dataclass(frozen=True)
class Paired:
    """A mean difference between paired values.

    Args:
        difference: mean of values − reference, in the metric's unit.
        low: lower end of its 95 % interval; equal to `difference` where that cannot be told.
        high: upper end of it.
        p: two-sided p-value of no difference; None where the pairs are too few for any.
        test: the name of the test.
    """

    difference: float
    low: float
    high: float
    p: float | None
    test: str


def paired_seeds(values: Sequence[float], reference: Sequence[float], seed: int = 0) -> Paired:
    """Compare values that are paired by seed: a BCa bootstrap interval, and Wilcoxon's signed-rank test.

    Args:
        values: (seeds,), of one method.
        reference: (seeds,), of the other, in the same order.
        seed: of the resamples.
    """
    differences = _differences(values, reference)
    low, high = _bootstrap(differences, np.random.default_rng(seed))
    return Paired(float(differences.mean()), low, high, signed_rank_p(differences), "Wilcoxon signed-rank")


def paired_folds(values: Sequence[float], reference: Sequence[float], test_over_train: float) -> Paired:
    """Compare values that are paired by fold, whose training rows overlap: the corrected resampled t-test.

    t = mean / √((1/n + test/train) · variance), with n − 1 degrees of freedom: without the second term the overlap of
    the training rows makes differences look surer than they are.

    Args:
        values: (folds of all repeats,), of one method.
        reference: the same of the other, in the same order.
        test_over_train: rows of a fold's test part to those of its training part; 1 / (folds − 1).

    Reference: Nadeau and Bengio, Machine Learning 52, 2003.
    """
    differences, name = _differences(values, reference), "corrected resampled t"
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return Paired(mean, mean, mean, None, name)
    error = float(np.sqrt((1 / count + test_over_train) * differences.var(ddof=1)))
    if error == 0:
        return Paired(mean, mean, mean, 1.0 if mean == 0 else None, name)  # without spread there is no scale
    reach = float(stats.t.ppf((1 + COVERAGE) / 2, count - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return Paired(mean, mean - reach, mean + reach, p, name)


def signed_rank_p(differences: Sequence[float] | np.ndarray) -> float | None:
    """Return the two-sided p-value of Wilcoxon's test that differences lie about 0; exact up to 50 without ties.

    Args:
        differences: (pairs,); those of 0 are left out, as Wilcoxon did.

    Returns:
        1.0 where all are 0, None where there is but one pair.
    """
    differences = np.round(np.asarray(differences, float), DIGITS)
    if len(differences) < 2:
        return None
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def least_p(pairs: int) -> float:
    """Return the least p-value that the signed-rank test of so many pairs can give: 2 of 2^pairs signs are extreme."""
    return float(min(1.0, 2.0 ** (1 - pairs)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method, in their order.

    The i-th smallest of k is multiplied by k − i + 1; none is smaller than one before it, none above 1.

    Args:
        p_values: (comparisons,).
    """
    corrected, highest, count = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, position in enumerate(sorted(range(count), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (count - rank) * p_values[position]))
        corrected[position] = highest
    return corrected


def _differences(values: Sequence[float], reference: Sequence[float]) -> np.ndarray:
    differences: np.ndarray = np.round(np.asarray(values, float) - np.asarray(reference, float), DIGITS)
    return differences


def _bootstrap(differences: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % interval of the mean over resampled pairs."""
    mean = float(differences.mean())
    if np.ptp(differences) <= 1e-12 * max(1.0, abs(mean)):
        return mean, mean
    found = stats.bootstrap(
        (differences,), np.mean, confidence_level=COVERAGE, n_resamples=RESAMPLES, method="BCa", rng=rng
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
