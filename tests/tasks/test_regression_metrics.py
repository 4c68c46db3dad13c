"""Scores of a regression against scipy's and scikit-learn's, also over rows that are drawn again."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.tasks.regression import Regression
from peft_bidora.tasks.regression_metrics import ranks, regression_scores

Numbers = NDArray[np.float64]
TASK = Regression(0.0, 1.0)


def expected(predicted: Numbers, labels: Numbers) -> dict[str, float]:
    return {
        "pearson": float(pearsonr(predicted, labels).statistic),
        "spearman": float(spearmanr(predicted, labels).statistic),
        "mse": mean_squared_error(labels, predicted),
        "mae": mean_absolute_error(labels, predicted),
        "r2": r2_score(labels, predicted),
    }


def random_case(seed: int, rows: int = 50, offset: float = 0.0) -> tuple[Numbers, Numbers]:
    """Labels in steps of a half, so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = np.round(2 * rng.normal(size=rows)) / 2 + offset
    return labels + rng.normal(size=rows), labels


@pytest.mark.parametrize("offset", [0.0, -1e6])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scipys_and_scikit_learns(seed: int, offset: float) -> None:
    predicted, labels = random_case(seed, offset=offset)
    # Sums of 50 terms in another order; a value near 1e6 has ten digits behind the point.
    assert TASK.scores(predicted.tolist(), labels.tolist()) == pytest.approx(expected(predicted, labels), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_count_several_times_equal_rows_that_stand_there_so_often(seed: int) -> None:
    predicted, labels = random_case(seed, 20)
    counts = np.random.default_rng(seed).integers(0, 4, (3, 20))
    found = regression_scores(predicted, labels, counts.astype(float))
    for draw, times in enumerate(counts):
        rows = np.repeat(np.arange(20), times)
        one = {name: float(values[draw]) for name, values in found.items()}
        assert one == pytest.approx(expected(predicted[rows], labels[rows]), rel=1e-12)


def test_ranks_of_equal_values_are_the_mean_of_their_places() -> None:
    values = np.array([3.0, 1.0, 3.0, 2.0, 1.0, 3.0])
    assert ranks(values, np.ones(6)).tolist() == rankdata(values).tolist()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 / 3])
def test_constant_predictions_have_no_correlation(value: float) -> None:
    labels = np.array([1.0, 2.0, 4.0])
    found = TASK.scores([value] * 3, labels.tolist())
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    assert found["r2"] == pytest.approx(r2_score(labels, [value] * 3), rel=1e-12)


@pytest.mark.parametrize(("predicted", "r2"), [([0.5, 0.5, 0.5], 1.0), ([0.5, 0.5, 0.2], 0.0)])
def test_r2_of_constant_labels_is_scikit_learns(predicted: list[float], r2: float) -> None:
    assert TASK.scores(predicted, [0.5] * 3)["r2"] == r2 == r2_score([0.5] * 3, predicted)


def test_r2_of_constant_labels_does_not_hang_on_rounding() -> None:
    # The mean of three times 0.1 is not 0.1, of which a variance of 1e-34 could be made.
    assert TASK.scores([0.1, 0.1, 0.2], [0.1] * 3)["r2"] == 0.0


def test_draws_of_one_row_alone_and_of_values_whose_squares_are_0_have_no_correlation() -> None:
    values = np.array([0.1, 0.7, 1e9 / 3])
    for row in np.diag([3.0, 7.0, 6.0]):
        found = regression_scores(values, values[::-1], row)
        assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    tiny = np.array([1e-200, 2e-200, 1.0])
    assert regression_scores(tiny, tiny, np.array([1.0, 1.0, 0.0]))["pearson"] == 0.0


def test_a_single_row_has_scores() -> None:
    assert TASK.scores([2.0], [1.0]) == {"pearson": 0.0, "spearman": 0.0, "mse": 1.0, "mae": 1.0, "r2": 0.0}


def test_prediction_that_is_far_off_warns_of_nothing() -> None:
    found = TASK.scores([1e200, 0.0, 1.0], [0.0, 1.0, 2.0])
    assert found["mse"] == np.inf
    assert found["r2"] == -np.inf


def test_intervals_agree_with_resampling_the_rows_themselves() -> None:
    predicted, labels = random_case(1, 200)
    found = scores_with_intervals(TASK, predicted.tolist(), labels.tolist(), 0)
    rng = np.random.default_rng(5)
    drawn = [expected(predicted[rows], labels[rows]) for rows in rng.integers(0, 200, (150, 200))]
    for name, score in found.items():
        low, high = np.quantile([one[name] for one in drawn], [0.025, 0.975])
        width = high - low
        # Quantiles of 150 and 1000 draws: about a tenth of the width apart by chance.
        assert score["low"] == pytest.approx(low, abs=0.25 * width)
        assert score["high"] == pytest.approx(high, abs=0.25 * width)
        assert score["low"] < score["value"] < score["high"]


def test_intervals_are_the_same_however_many_draws_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, labels = random_case(0, 30)
    whole = scores_with_intervals(TASK, predicted.tolist(), labels.tolist(), 0)
    monkeypatch.setattr("peft_bidora.tasks.resampling.CELLS", 30 * 7)
    cut = scores_with_intervals(TASK, predicted.tolist(), labels.tolist(), 0)
    for name, score in whole.items():
        assert cut[name] == pytest.approx(score, rel=1e-12)


def test_intervals_of_1500_rows_take_a_second() -> None:
    predicted, labels = random_case(0, 1500)
    start = time.process_time()
    scores_with_intervals(TASK, predicted.tolist(), labels.tolist(), 0)
    assert time.process_time() - start < 3  # 0.3 s on an idle core; slack for a busy one
