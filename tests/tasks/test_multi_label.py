"""Several labels a row: scores against scikit-learn's, the loss, the labels of files and splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoTokenizer

from peft_bidora.data.examples import Examples
from peft_bidora.data.faults import Fault
from peft_bidora.errors import DataError, RecipeError
from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.tasks.multi_label import MultiLabelClassification, rarest_labels
from peft_bidora.tasks.sequence_classification import SEQUENCE_CLASSIFICATION, SequenceClassification
from peft_bidora.tasks.task import TaskOptions

NAMES = ("a", "b", "c", "d")
TASK = MultiLabelClassification(NAMES)
Labels = Sequence[tuple[str, ...]]


def examples(labels: Sequence[Any], source: str = "train.jsonl") -> Examples:
    texts = [(f"text {index}",) for index in range(len(labels))]
    return Examples(texts, list(labels), None, [{}] * len(labels), source, list(range(1, len(labels) + 1)), "line")


def random_case(seed: int, rows: int = 40) -> tuple[list[np.ndarray[Any, Any]], Labels]:
    rng = np.random.default_rng(seed)
    true = rng.random((rows, 4)) < [0.5, 0.3, 0.2, 0.1]
    logits = rng.normal(size=(rows, 4)) + 2 * true - 1
    return list(logits), [tuple(name for name, has in zip(NAMES, row, strict=True) if has) for row in true]


def indicators(logits: list[np.ndarray[Any, Any]], labels: Labels) -> tuple[Any, Any]:
    return np.array([[name in row for name in NAMES] for row in labels]), np.array(logits) > 0


def expected(true: Any, predicted: Any) -> dict[str, float]:
    return {
        "f1_micro": f1_score(true, predicted, average="micro", zero_division=0),
        "f1_macro": f1_score(true, predicted, average="macro", zero_division=0),
        "subset_accuracy": accuracy_score(true, predicted),
    }


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learns(seed: int) -> None:
    logits, labels = random_case(seed)
    assert TASK.scores(logits, labels) == pytest.approx(expected(*indicators(logits, labels)), rel=1e-12)


def test_class_that_never_occurs_does_not_count_in_f1_macro() -> None:
    found = TASK.scores([np.array([1.0, 1.0, -1.0, -1.0]), np.array([-1.0, 1.0, -1.0, -1.0])], [("a",), ("b",)])
    assert found["f1_macro"] == pytest.approx((1 + 2 / 3) / 2)


def test_rows_without_any_label_have_scores() -> None:
    found = TASK.scores([np.full(4, -1.0)] * 2, [(), ()])
    assert found == {"f1_micro": 0.0, "f1_macro": 0.0, "subset_accuracy": 1.0}


def test_intervals_agree_with_resampling_the_rows_themselves() -> None:
    logits, labels = random_case(1, 150)
    found = scores_with_intervals(TASK, logits, labels, 0)
    true, predicted = indicators(logits, labels)
    rng = np.random.default_rng(5)
    drawn = [expected(true[rows], predicted[rows]) for rows in rng.integers(0, 150, (100, 150))]
    for name, score in found.items():
        low, high = np.quantile([one[name] for one in drawn], [0.025, 0.975])
        # Quantiles of 100 and 1000 draws: about 0.015 apart by chance.
        assert score["low"] == pytest.approx(low, abs=0.04)
        assert score["high"] == pytest.approx(high, abs=0.04)
        assert score["low"] < score["value"] < score["high"]


def test_table_by_class_equals_scikit_learns() -> None:
    logits, labels = random_case(2)
    true, predicted = indicators(logits, labels)
    table = TASK.details(logits, labels)["by_class"]
    for name, found in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert [row[name] for row in table] == pytest.approx(found(true, predicted, average=None, zero_division=0))
    assert [(row["label"], row["rows"]) for row in table] == list(zip(NAMES, true.sum(0), strict=True))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 2, (12, 4), generator=generator).float()


def test_model_says_that_it_has_several_labels(word_model: Path) -> None:
    model = TASK.load_model(str(word_model), AutoTokenizer.from_pretrained(word_model))
    # transformers' pipeline takes the sigmoid of each logit then, and else a softmax over all.
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5, 7.0)])
@pytest.mark.parametrize("cuts", [(12,), (4, 4, 4), (1, 9, 2)])
def test_losses_of_micro_batches_add_up_to_the_mean_nats_a_label(
    cuts: tuple[int, ...], weights: tuple[float, ...] | None
) -> None:
    logits, labels = batch()
    task = MultiLabelClassification(NAMES, weights)
    parts = zip(logits.split(cuts), labels.split(cuts), strict=True)
    total = sum(task.loss({"logits": part}, truth, labels.numel()) for part, truth in parts)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    whole = binary_cross_entropy_with_logits(logits, labels.double(), pos_weight=weight)
    # Sums of 48 float64 terms in another order.
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)


def test_prediction_columns_are_the_labels_that_apply_and_all_probabilities() -> None:
    task = MultiLabelClassification(("x", "y"))
    found = task.prediction_columns([np.array([np.log(3.0), 0.0]), np.array([-1000.0, -1.0])])
    assert [row["predicted_labels"] for row in found] == [["x"], []]  # 0.5 is not above 0.5
    assert found[0]["probabilities"] == pytest.approx({"x": 0.75, "y": 0.5})


@pytest.mark.parametrize(
    ("option", "label", "read"),
    [(None, ["a"], ("a",)), (None, "a", "a"), (True, ["a"], ("a",)), (True, "a", None), (False, ["a"], None)],
)
def test_option_says_whether_lists_are_read(option: bool | None, label: object, read: object) -> None:
    found = SEQUENCE_CLASSIFICATION.layout(TaskOptions(multi_label=option), None).label(label, "label")
    assert found == read if read else isinstance(found, Fault)


def test_lists_make_a_multi_label_task_and_classes_another() -> None:
    lists, classes = examples([("b", "a"), (), ("10",), ("9",)]), examples(["b", "a"])
    assert SEQUENCE_CLASSIFICATION.fit(TaskOptions(), lists, lists) == MultiLabelClassification(("10", "9", "a", "b"))
    assert SEQUENCE_CLASSIFICATION.fit(TaskOptions(), classes, classes) == SequenceClassification(("a", "b"))


def test_mixture_of_lists_and_classes_is_refused_with_lines() -> None:
    mixed = examples([("a",), "b", ("a", "b"), "a"])
    with pytest.raises(DataError, match=r"2 rows have a single label \(lines 2, 4\) where others have lists"):
        SEQUENCE_CLASSIFICATION.fit(TaskOptions(), mixed, mixed)
    with pytest.raises(DataError, match=r"test\.jsonl: 1 row has a single label \(line 2\)"):
        TASK.check(examples([("a",), "b"], "test.jsonl"))
    with pytest.raises(DataError, match=r"test\.jsonl: 1 row has a list of labels \(line 1\) where others have a si"):
        SequenceClassification(("a", "b")).check(examples([("a",), "b"], "test.jsonl"))


def test_classes_beyond_those_of_the_train_rows_are_named() -> None:
    with pytest.raises(DataError, match=r"2 rows have a class that the train rows lack: 'x', 'y' \(lines 1, 3\)"):
        TASK.check(examples([("a", "x"), (), ("y", "x")], "test.jsonl"))


def test_lists_that_are_all_empty_are_refused() -> None:
    empty = examples([(), ()])
    with pytest.raises(DataError, match="only empty lists of labels"):
        SEQUENCE_CLASSIFICATION.fit(TaskOptions(), empty, empty)


def test_splits_keep_the_rarest_label_of_each_row_in_proportion() -> None:
    labels = [("a", "b"), ("a",), ("b", "a"), ("a", "c"), (), ("a",)]
    assert rarest_labels(examples(labels)) == ["b", "a", "b", "c", "", "a"]
    assert SEQUENCE_CLASSIFICATION.strata(examples(labels)) == rarest_labels(examples(labels))
    assert SEQUENCE_CLASSIFICATION.strata(examples(["a", "b"])) is None


def test_balanced_weights_are_rows_without_over_rows_with_the_class() -> None:
    rows = examples([("a", "b"), ("a",), ("a",), (), ("c",)])
    lower = rows.take(range(4))
    task = SEQUENCE_CLASSIFICATION.fit(TaskOptions(class_weights="balanced"), rows, lower)
    assert task == MultiLabelClassification(("a", "b", "c"), (1 / 3, 3.0, 4.0))  # c counts as if one row had it


def test_weight_of_an_unknown_class_is_refused() -> None:
    rows = examples([("apple", "pear"), ()])
    with pytest.raises(RecipeError, match=r"names the class 'aple'.*Did you mean 'apple'\?"):
        SEQUENCE_CLASSIFICATION.fit(TaskOptions(class_weights={"aple": 2.0}), rows, rows)
