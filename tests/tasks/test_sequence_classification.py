"""The loss, the encoding and the prediction rows of a classification."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from peft_bidora.errors import RecipeError
from peft_bidora.tasks.multi_label import MultiLabelClassification
from peft_bidora.tasks.registry import find_task
from peft_bidora.tasks.sequence_classification import SEQUENCE_CLASSIFICATION, SequenceClassification, reading

TASK = SequenceClassification(("no", "yes"))
loss = SequenceClassification(("a", "b", "c")).loss


def batch(rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 3, generator=generator)
    return logits, torch.randint(0, 3, (rows,), generator=generator)


def test_loss_is_the_mean_cross_entropy() -> None:
    logits, labels = batch()
    # A sum divided by the rows against a mean, in float32.
    torch.testing.assert_close(loss({"logits": logits}, labels), cross_entropy(logits, labels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cuts", [(4, 4, 4), (1, 9, 2), (11, 1)])
def test_losses_of_micro_batches_add_up_to_that_of_the_batch(cuts: tuple[int, ...]) -> None:
    logits, labels = batch()
    parts = zip(logits.split(cuts), labels.split(cuts), strict=True)
    total = sum(loss({"logits": part}, truth, len(labels)) for part, truth in parts)
    # Sums of 12 float32 terms in another order.
    torch.testing.assert_close(total, loss({"logits": logits}, labels), rtol=1e-6, atol=1e-6)


def test_loss_of_bfloat16_logits_is_taken_in_float32() -> None:
    logits, labels = batch()
    low = logits.bfloat16()
    assert torch.equal(loss({"logits": low}, labels), loss({"logits": low.float()}, labels))


def test_prediction_columns_are_the_label_and_the_probabilities() -> None:
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 0.0]])  # the second would overflow a plain exponential
    found = TASK.prediction_columns(TASK.decode(logits))
    assert [row["predicted_label"] for row in found] == ["yes", "no"]
    assert found[0]["probabilities"] == pytest.approx({"no": 0.25, "yes": 0.75})
    assert found[1]["probabilities"] == pytest.approx({"no": 1.0, "yes": 0.0})


def test_state_restores_the_task() -> None:
    assert SEQUENCE_CLASSIFICATION.restore(TASK.state()) == TASK


def test_details_have_precision_and_recall_by_class() -> None:
    predictions = [np.array([1.0, 0.0])] * 3 + [np.array([0.0, 1.0])]
    details = TASK.details(predictions, ["no", "no", "yes", "yes"])
    assert details["confusion"] == [[2, 0], [1, 1]]
    assert details["by_class"][0] == {"label": "no", "precision": 2 / 3, "recall": 1.0, "f1": 0.8, "rows": 2}
    assert details["by_class"][1] == {"label": "yes", "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "rows": 2}


def test_task_is_found_by_its_name() -> None:
    assert find_task("sequence-classification") is SEQUENCE_CLASSIFICATION


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"task=sequence-classificaton.*Did you mean 'sequence-classification'\?"):
        find_task("sequence-classificaton")


@pytest.mark.parametrize(
    ("made", "name", "expected"),
    [
        (SequenceClassification, "predicted_label", "it's"),
        (MultiLabelClassification, "predicted_labels", ["no", "it's"]),
    ],
)
def test_reading_lines_name_the_classes_from_stock_logits(made: Any, name: str, expected: object) -> None:
    class Model:
        logits = torch.tensor([[0.5, -1.0, 2.0]])

        def __call__(self, **_: object) -> "Model":
            return self

    names = {"tokenizer": lambda texts, return_tensors: {}, "model": Model()}
    exec("\n".join(reading(made(("no", "yes", "it's")).state(), ("a",), None)), names)
    assert names[name] == expected


def test_reading_lines_of_a_pair_give_the_tokenizer_both_texts() -> None:
    encode = reading(TASK.state(), ("a", "b"), None)[1]
    names: dict[str, Any] = {"tokenizer": lambda *texts, return_tensors: texts}
    exec(encode, names)
    assert names["inputs"] == (["..."], ["..."])
