"""Statistics of paired values, held against published examples and against simulations."""

import numpy as np
import pytest
from scipy import stats

from peft_bidora.study.statistics import holm, least_p, paired_folds, paired_seeds, signed_rank_p

# Darwin's maize: differences in height of 15 pairs of cross- and self-fertilised plants, eighths of an inch (Darwin,
# 1876). Fisher, The Design of Experiments, 1935, gives them t = 2.148 and p = .0497.
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
FISHER_T_P = 0.0497


def test_signed_rank_test_gives_the_known_value_of_darwins_maize() -> None:
    # 24 of the 120 rank sums are against: R's wilcox.test(differences) says V = 96, p = 0.04126.
    assert signed_rank_p(DARWIN) == pytest.approx(0.04126, abs=5e-6)


def test_corrected_t_test_without_overlap_is_students_of_darwins_maize() -> None:
    found = paired_folds(DARWIN, [0] * 15, test_over_train=0)

    assert found.p == pytest.approx(FISHER_T_P, abs=5e-5)
    assert found.difference == pytest.approx(20.93, abs=5e-3)
    interval = stats.ttest_1samp(DARWIN, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_corrected_t_test_widens_the_variance_by_the_ratio_of_test_to_training_rows() -> None:
    differences = np.array([0.02, 0.01, 0.03, -0.01, 0.02])
    found = paired_folds(differences, np.zeros(5), test_over_train=1 / 4)

    t = differences.mean() / np.sqrt((1 / 5 + 1 / 4) * differences.var(ddof=1))
    assert found.p == pytest.approx(2 * stats.t.sf(t, 4), rel=1e-12)
    plain = stats.ttest_1samp(differences, 0)
    assert t == pytest.approx(plain.statistic / np.sqrt(1 + 5 / 4), rel=1e-12)


def test_a_difference_without_spread_has_no_interval() -> None:
    assert paired_folds([1.0, 1.0], [0.0, 0.0], 0.25).p is None
    assert paired_folds([0.1 + 0.2] * 3, [0.3] * 3, 0.25).p == 1.0
    assert paired_folds([1.0, 1.0], [1.0, 1.0], 0.25).p == 1.0
    assert paired_folds([1.0], [0.0], 0.25).p is None
    level = paired_seeds([0.8, 0.9], [0.7, 0.8])
    assert (level.low, level.high) == pytest.approx((0.1, 0.1))


def test_equal_values_have_a_p_value_of_one_and_a_single_pair_has_none() -> None:
    assert signed_rank_p([0.0, 0.0, 0.0]) == 1.0
    assert signed_rank_p([0.3]) is None


def test_rounding_breaks_no_tie() -> None:
    # 0.3 − 0.2 < 0.4 − 0.3 in binary: as ranks 1 and 2 they would give another sum than as a tie of 1.5 each.
    broken = [0.4 - 0.3, -(0.3 - 0.2), 0.5, 0.6, 0.7, 0.8]
    assert broken[0] != -broken[1]
    assert signed_rank_p(broken) == signed_rank_p([0.125, -0.125, 0.5, 0.6, 0.7, 0.8])


@pytest.mark.parametrize("pairs", [3, 5, 6, 8])
def test_least_p_is_that_of_differences_of_one_sign(pairs: int) -> None:
    assert signed_rank_p(np.arange(1, pairs + 1)) == pytest.approx(least_p(pairs), rel=1e-12)


def test_bootstrap_interval_is_that_of_scipy_and_of_the_seed() -> None:
    values, reference = np.array([0.81, 0.84, 0.79, 0.9, 0.83]), np.array([0.8, 0.8, 0.8, 0.82, 0.85])
    found = paired_seeds(values, reference, seed=3)

    expected = stats.bootstrap(
        (np.round(values - reference, 12),), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (found.low, found.high) == (expected.low, expected.high)
    assert found.low < found.difference < found.high


def test_holm_gives_the_values_of_rs_p_adjust() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def _p_values(shift: float, pairs: int, comparisons: int = 1000) -> np.ndarray:
    """Return the p-values of comparisons between methods whose means differ by a shift, over seeds of their own."""
    rng = np.random.default_rng(7)
    of_seed = rng.normal(0, 1, (comparisons, pairs))  # what both methods share
    noise = rng.normal(0, 0.5, (2, comparisons, pairs))
    values, reference = of_seed + noise[0] + shift, of_seed + noise[1]
    return np.array([signed_rank_p(differences) for differences in values - reference])


def test_p_values_of_equal_methods_are_uniform() -> None:
    found = _p_values(shift=0.0, pairs=20)

    # Steps of the exact distribution with 20 pairs are far below the 0.043 that 1,000 uniform draws reach at p = .05.
    assert stats.kstest(found, "uniform").pvalue > 0.05
    assert abs((found <= 0.05).mean() - 0.05) <= 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_p_values_of_unequal_methods_are_small() -> None:
    # A shift of one standard deviation of the differences over 20 pairs: the t-test has a power of .99
    assert (_p_values(shift=0.5 * np.sqrt(2), pairs=20) <= 0.05).mean() > 0.95


def test_few_pairs_can_show_no_difference() -> None:
    assert _p_values(shift=10.0, pairs=5).min() == pytest.approx(least_p(5))


def _fold_p_values(correction: float, comparisons: int = 1000) -> np.ndarray:
    """Return p-values of equal methods over 5 folds whose differences correlate by 1/5."""
    rng = np.random.default_rng(11)
    shared, own = rng.normal(0, np.sqrt(0.2), (comparisons, 1)), rng.normal(0, np.sqrt(0.8), (comparisons, 5))
    return np.array([paired_folds(row, np.zeros(5), correction).p for row in shared + own])


def test_correction_makes_the_p_values_of_equal_methods_uniform_over_correlated_folds() -> None:
    # A correlation ρ = test / (test + train) = 1/5 is what the correction test / train = 1/4 undoes exactly.
    assert stats.kstest(_fold_p_values(1 / 4), "uniform").pvalue > 0.05
    assert (_fold_p_values(0.0) <= 0.05).mean() > 0.10


def test_interval_of_five_pairs_holds_the_truth_in_some_85_of_100_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_bidora.study.statistics.RESAMPLES", 999)
    rng = np.random.default_rng(5)
    found = [paired_seeds(rng.normal(0, 1, 5), np.zeros(5), seed) for seed in range(400)]
    held = np.mean([each.low <= 0 <= each.high for each in found])
    assert held == pytest.approx(0.85, abs=0.054)  # three standard errors of 400 draws
