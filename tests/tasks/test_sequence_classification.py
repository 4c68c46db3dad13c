"""The loss, the encoding and the prediction rows of a classification."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from peft_bidora.data.examples import Examples
from peft_bidora.errors import RecipeError
from peft_bidora.tasks.registry import find_task
from peft_bidora.tasks.sequence_classification import SEQUENCE_CLASSIFICATION, loss, prediction_rows


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


def test_prediction_rows_keep_the_row_and_add_probabilities() -> None:
    rows = [{"text": "a", "id": 7}, {"text": "b", "id": 8}]
    examples = Examples([("a",), ("b",)], None, None, rows, "made.jsonl", [1, 2], "line")
    logits = np.array([[0.0, np.log(3.0)], [1000.0, 0.0]])  # the second would overflow a plain exponential
    found = prediction_rows(examples, logits, ["no", "yes"])
    assert [row["predicted_label"] for row in found] == ["yes", "no"]
    assert [(row["text"], row["id"]) for row in found] == [("a", 7), ("b", 8)]
    assert found[0]["probabilities"] == pytest.approx({"no": 0.25, "yes": 0.75})
    assert found[1]["probabilities"] == pytest.approx({"no": 1.0, "yes": 0.0})


def test_task_is_found_by_its_name() -> None:
    assert find_task("sequence-classification") is SEQUENCE_CLASSIFICATION


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"task=sequence-classificaton.*Did you mean 'sequence-classification'\?"):
        find_task("sequence-classificaton")
