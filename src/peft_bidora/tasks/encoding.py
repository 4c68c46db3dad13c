"""From texts to token ids, and from rows of them to batches."""

from collections.abc import Callable
from typing import Any

from peft_bidora.data.examples import Examples
from peft_bidora.tasks.task import Columns

IGNORED = -100  # the label of a position that is no target


def encode_texts(examples: Examples, tokenizer: Any, max_length: int) -> Columns:
    """Return the tokenizer's columns of single texts or pairs, unpadded.

    Args:
        examples: (rows,), single texts or pairs.
        tokenizer: of the model.
        max_length: the most tokens of a row; longer ones are cut, the longer text of a pair first.
    """
    sides = [list(side) for side in zip(*examples.texts, strict=True)]
    return dict(tokenizer(*sides, truncation=True, max_length=max_length))


def padding_collator(tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
    """Return the function that pads encoded rows to the longest of a batch."""
    from transformers import DataCollatorWithPadding

    collate: Callable[[list[dict[str, Any]]], Any] = DataCollatorWithPadding(tokenizer)
    return collate


def text_reading(texts: tuple[Any, ...]) -> str:
    """Return the Python that encodes a row of one text, or of two, by the stock tokenizer."""
    sides = ", ".join(['["..."]'] * len(texts))
    return f'inputs = tokenizer({sides}, return_tensors="pt")'
