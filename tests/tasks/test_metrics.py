"""Scores of a classification against scikit-learn's, and their intervals."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.tasks.metrics import classification_scores, confusion, resample
from peft_bidora.tasks.sequence_classification import SequenceClassification


def task_of(classes: int) -> SequenceClassification:
    return SequenceClassification(tuple(str(k) for k in range(classes)))


def scores(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    return task_of(logits.shape[1]).scores(list(logits), labels.astype(str))


def intervals(logits: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> dict[str, dict[str, float]]:
    return scores_with_intervals(task_of(logits.shape[1]), list(logits), labels.astype(str), seed)


def random_case(seed: int, rows: int, classes: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + 0.7 * np.eye(classes)[labels]
    return logits, labels


def calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """By its definition, a bin after the other."""
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    error = 0.0
    for bin in range(15):
        inside = (confidence > bin / 15) & (confidence <= (bin + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learns(seed: int, classes: int) -> None:
    logits, labels = random_case(seed, 60, classes)
    predicted = logits.argmax(-1)
    # Both count whole rows and divide once or twice in float64.
    assert scores(logits, labels) == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predicted),
            "f1_macro": f1_score(labels, predicted, average="macro"),
            "f1_weighted": f1_score(labels, predicted, average="weighted"),
            "matthews": matthews_corrcoef(labels, predicted),
            "ece": calibration_error(softmax(logits, -1), labels),
        },
        rel=1e-12,
        abs=1e-12,
    )


def test_class_that_never_occurs_does_not_count_in_f1() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    found = classification_scores(confusion(predicted, labels, 4))
    assert float(found["f1_macro"]) == pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-12)


def test_one_predicted_class_has_matthews_zero() -> None:
    logits = np.tile([1.0, 0.0], (6, 1))
    assert scores(logits, np.array([0, 1, 0, 1, 0, 1]))["matthews"] == 0.0


def test_confusion_has_the_truth_in_its_rows() -> None:
    counts = confusion(np.array([1, 1, 0]), np.array([0, 1, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_resampling_keeps_the_number_of_rows() -> None:
    counts = np.array([[5, 1], [2, 4]])
    drawn = resample(counts, np.random.default_rng(0), 50)
    assert drawn.shape == (50, 2, 2)
    assert (drawn.sum((1, 2)) == 12).all()
    assert len({matrix.tobytes() for matrix in drawn}) > 1


@pytest.mark.parametrize("seed", range(4))
def test_intervals_contain_the_value(seed: int) -> None:
    logits, labels = random_case(seed, 80, 3)
    found = intervals(logits, labels, seed)
    assert {name: score["value"] for name, score in found.items()} == scores(logits, labels)
    for score in found.values():
        assert score["low"] < score["value"] < score["high"]


def test_intervals_narrow_with_more_rows() -> None:
    widths = []
    for rows in (50, 800):
        score = intervals(*random_case(0, rows, 3), 0)["accuracy"]
        widths.append(score["high"] - score["low"])
    # The width falls with the root of the rows: 4 times here.
    assert 2.5 < widths[0] / widths[1] < 6


def test_intervals_agree_with_resampling_the_rows_themselves() -> None:
    logits, labels = random_case(1, 200, 3)
    found = intervals(logits, labels, 0)
    rng = np.random.default_rng(5)
    drawn = [scores(logits[rows], labels[rows]) for rows in rng.integers(0, 200, (400, 200))]
    for name, score in found.items():
        values = np.array([one[name] for one in drawn])
        if name == "ece":  # is moved to the error of the rows
            values += score["value"] - values.mean()
        low, high = np.quantile(values, [0.025, 0.975])
        # Quantiles of 400 and 1000 draws: about 0.01 apart by chance.
        assert score["low"] == pytest.approx(low, abs=0.03)
        assert score["high"] == pytest.approx(high, abs=0.03)


def test_intervals_are_seeded() -> None:
    logits, labels = random_case(0, 60, 3)
    one, same, other = (intervals(logits, labels, seed) for seed in (3, 3, 4))
    assert one == same
    assert one != other
