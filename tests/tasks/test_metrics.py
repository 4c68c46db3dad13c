"""Scores of a classification against scikit-learn's, and their intervals."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.tasks.metrics import class_sums, classification_scores, confusion, resampled_classification_scores
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
    positive = {f"f1_of_{k}": f1_score(labels, predicted, pos_label=k) for k in range(2)} if classes == 2 else {}
    # Both count whole rows and divide once or twice in float64.
    assert scores(logits, labels) == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predicted),
            "f1_macro": f1_score(labels, predicted, average="macro"),
            "f1_weighted": f1_score(labels, predicted, average="weighted"),
            "matthews": matthews_corrcoef(labels, predicted),
            **positive,
            "ece": calibration_error(softmax(logits, -1), labels),
        },
        rel=1e-12,
        abs=1e-12,
    )


def test_class_that_never_occurs_does_not_count_in_f1() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    found = classification_scores(class_sums(confusion(predicted, labels, 4)))
    assert float(found["f1_macro"]) == pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-12)


def test_one_predicted_class_has_matthews_zero() -> None:
    logits = np.tile([1.0, 0.0], (6, 1))
    assert scores(logits, np.array([0, 1, 0, 1, 0, 1]))["matthews"] == 0.0


def test_confusion_has_the_truth_in_its_rows() -> None:
    found = confusion(np.array([1, 1, 0]), np.array([0, 1, 0]), 3)
    assert found.matrix().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(("seed", "classes"), [(0, 2), (1, 5), (2, 30), (3, 200)])
def test_resampling_the_cells_that_occur_is_resampling_the_whole_matrix(seed: int, classes: int) -> None:
    logits, labels = random_case(seed, 70, classes)
    found = confusion(logits.argmax(-1), labels, classes)
    scores = resampled_classification_scores(found, np.random.default_rng(seed), 20)
    matrix = found.matrix()
    drawn = np.random.default_rng(seed).multinomial(70, (matrix / 70).ravel(), size=20).reshape(20, classes, classes)
    for draw, counts in enumerate(drawn):
        labels, predicted = (np.repeat(index, counts.ravel()) for index in np.indices(counts.shape).reshape(2, -1))
        assert len(labels) == 70
        assert scores["accuracy"][draw] == accuracy_score(labels, predicted)
        assert scores["f1_macro"][draw] == pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-12)


def test_memory_of_the_intervals_grows_with_rows_and_not_with_the_square_of_the_classes() -> None:
    logits, labels = random_case(0, 60, 5000)
    tracemalloc.start()
    found = intervals(logits, labels, 0)
    details = task_of(5000).details(list(logits), labels.astype(str))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One matrix of 5000 x 5000 numbers has 200 MB, a thousand of them 200 GB.
    assert peak < 1e8
    assert found["accuracy"]["value"] == accuracy_score(labels, logits.argmax(-1))
    assert set(details) == {"by_class"}
    assert len(details["by_class"]) == 5000


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
