"""Weights of classes: what they are, and that the losses of micro-batches add up."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from peft_bidora.data.examples import Examples
from peft_bidora.errors import DataError, RecipeError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.tasks.sequence_classification import SEQUENCE_CLASSIFICATION, SequenceClassification
from peft_bidora.tasks.task import TaskOptions

LABELS = ["spam"] * 6 + ["ham"] * 3 + ["eggs"]


def examples(labels: Sequence[str]) -> Examples:
    texts = [(f"text {index}",) for index in range(len(labels))]
    return Examples(texts, list(labels), None, [{}] * len(labels), "train.csv", list(range(len(labels))), "line")


def fitted(options: TaskOptions, labels: Sequence[str] = LABELS) -> SequenceClassification:
    task = SEQUENCE_CLASSIFICATION.fit(options, examples([*labels, "spam"]), examples(labels))
    assert isinstance(task, SequenceClassification)
    return task


def test_balanced_weights_are_scikit_learns_of_the_lower_rows() -> None:
    expected = compute_class_weight("balanced", classes=np.array(["eggs", "ham", "spam"]), y=LABELS)
    assert fitted(TaskOptions(class_weights="balanced")).class_weights == pytest.approx(expected)


def test_class_that_a_mapping_leaves_out_weighs_one() -> None:
    assert fitted(TaskOptions(class_weights={"ham": 3})).class_weights == (1.0, 3.0, 1.0)


def test_no_weights_are_none() -> None:
    assert fitted(TaskOptions()).class_weights is None
    assert fitted(TaskOptions()).state() == {"label_names": ["eggs", "ham", "spam"]}


def test_unknown_classes_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"class_weights names the class 'spma'.*'eggs', 'ham', 'spam'.*mean 'spam'"):
        fitted(TaskOptions(class_weights={"spma": 2.0}))
    with pytest.raises(RecipeError, match=r"'true'.*YAML reads yes, no, on and off as booleans"):
        fitted(TaskOptions(class_weights={"true": 2.0}), ["yes", "no"])


@pytest.mark.parametrize("cuts", [(12,), (4, 4, 4), (1, 9, 2)])
def test_weighted_losses_of_micro_batches_add_up_to_the_weighted_sum_over_the_rows(cuts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (12,), generator=generator)
    task = SequenceClassification(("a", "b", "c"), (0.5, 1.0, 4.0))
    parts = zip(logits.split(cuts), labels.split(cuts), strict=True)
    total = sum(task.loss({"logits": part}, truth, 12) for part, truth in parts)
    weights = torch.tensor(task.class_weights, dtype=torch.float64)[labels]
    # Sums of 12 float64 terms in another order.
    whole = (weights * cross_entropy(logits, labels, reduction="none")).sum() / 12
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)


def test_keys_of_a_recipe_are_labels_as_a_data_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: m\ndata: {train: rows.csv}\noutput: run\nclassification: {class_weights: {1: 2, false: 3}}\n"
    )
    assert load_recipe(path).classification.class_weights == {"1": 2.0, "false": 3.0}
    with pytest.raises(RecipeError, match="class_weights"):
        load_recipe(path, ["classification.class_weights={1: 0}"])


def test_numbers_that_hardly_repeat_point_to_regression() -> None:
    rows = examples(["0.5", "1", "0.25", "2e1", "0.5"])
    with pytest.raises(DataError, match=r"the numbers '0\.25', '0\.5', '1', '2e1'.*set task=regression"):
        SEQUENCE_CLASSIFICATION.fit(TaskOptions(), rows, rows)
    for classes in (["0.5", "0.5", "1", "1"], ["1", "2", "3"], ["0.5", "n/a", "1"]):
        assert SEQUENCE_CLASSIFICATION.fit(TaskOptions(), examples(classes), examples(classes)).outputs
