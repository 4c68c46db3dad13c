"""Predict rows in batches of like length, for any task."""

from collections.abc import Callable
from typing import Any

import torch

from peft_bidora.adapter.layer import forget_constants
from peft_bidora.adapter.shards import is_sharded
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
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    predictions: list[Any] = [None] * len(examples)
    for first in range(0, len(batches), ranks.count()):
        turn = batches[first : first + ranks.count()]
        spare = ranks.rank() >= len(turn)
        # A pass gathers the shards of all ranks: one that has no rows left repeats another's.
        if not spare or is_sharded(model):
            rows = turn[0 if spare else ranks.rank()]
            batch = collate([{name: values[row] for name, values in columns.items()} for row in rows])
            inputs = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                found = task.predict_batch(model, inputs, tokenizer)
            for row, prediction in zip(rows, found, strict=True):
                predictions[row] = None if spare else prediction
        progress(sum(len(rows) for rows in turn))
    return ranks.merged(predictions)
