"""Prediction in batches: what it must not keep of the calls before."""

from typing import Any

import torch
from transformers import default_data_collator

from peft_bidora.training.prediction import predict


class Logits:
    """A task whose predictions are the logits."""

    def encode(self, rows: list[dict[str, Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        return {name: [row[name] for row in rows] for name in rows[0]}

    def collator(self, tokenizer: Any) -> Any:
        return default_data_collator

    @torch.no_grad()
    def predict_batch(self, model: Any, inputs: dict[str, Any], tokenizer: Any) -> list[list[float]]:
        return model(**inputs).logits.tolist()


def test_averaged_weights_that_are_written_into_data_are_predicted_with(make_adapted, make_rows):
    model, rows = make_adapted(), make_rows(4)
    before = predict(model, Logits(), None, rows, max_length=6, batch_size=2)
    assert before == predict(model, Logits(), None, rows, max_length=6, batch_size=2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(2)
    assert before != predict(model, Logits(), None, rows, max_length=6, batch_size=2)
