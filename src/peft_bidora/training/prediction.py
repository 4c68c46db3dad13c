"""Predict rows in batches of like length, for any task."""

from collections.abc import Callable
from typing import Any

import torch

from peft_bidora.adapter.layer import forget_constants
from peft_bidora.data.examples import Examples
from peft_bidora.tasks.task import Task
from peft_bidora.training import ranks


def predict(
    model: Any,
    task: Task,
    tokenizer: Any,
    examples: Examples,
    *,
    max_length: int,
    batch_size: int = 64,
    bfloat16: bool = False,
    progress: Callable[[int], Any] = lambda rows: None,
) -> list[Any]:
    """Return the prediction of each row, in the order of the examples; ranks take the batches in turn.

    Args:
        model: on the device to use; it is put into evaluation mode.
        task: whose predictions.
        tokenizer: of the model.
        examples: (rows,), with or without labels.
        max_length: the most tokens of a row.
        batch_size: rows a pass.
        bfloat16: whether to compute under autocast.
        progress: is told the number of rows after each pass.
    """
    columns, collate = task.encode(examples, tokenizer, max_length), task.collator(tokenizer)
    device = next(model.parameters()).device
    model.eval()
    forget_constants(model)
    # Rows of like length need little padding; the longest first, so that memory runs out at once or not at all.
    order = sorted(range(len(examples)), key=lambda row: len(columns["input_ids"][row]), reverse=True)
    predictions: list[Any] = [None] * len(examples)
    for turn, start in enumerate(range(0, len(order), batch_size)):
        rows = order[start : start + batch_size]
        if turn % ranks.count() == ranks.rank():
            batch = collate([{name: values[row] for name, values in columns.items()} for row in rows])
            inputs = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                for row, prediction in zip(rows, task.predict_batch(model, inputs, tokenizer), strict=True):
                    predictions[row] = prediction
        progress(len(rows))
    return ranks.merged(predictions)
