"""What the recipe needs to know of a task: a record of functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_bidora.data.examples import Examples

Array = NDArray[Any]


@dataclass(frozen=True)
class Task:
    """Hold the functions of one task.

    Args:
        name: the recipe's `task`.
        peft_type: PEFT's `task_type`, which decides what heads are saved with the adapter.
        chosen_by: the metric, larger is better, by which the best checkpoint is chosen.
        auto_class: returns the transformers class that builds the model.
        load_model: source, label names, tokenizer, attention implementation -> the model in float32.
        encode: examples, tokenizer, label names, max_length -> a data set of input columns and `labels`.
        loss: outputs, labels, number of items in the accumulated batch -> mean nats an example.
        scores: predictions, labels -> metrics.
        resampled_scores: predictions, labels, random generator, resamples -> each metric's (resamples,) values.
        prediction_rows: examples, predictions, label names -> one JSON object a row.
    """

    name: str
    peft_type: str
    chosen_by: str
    auto_class: Callable[[], Any]
    load_model: Callable[..., Any]
    encode: Callable[[Examples, Any, Sequence[str], int], Any]
    loss: Callable[..., Any]
    scores: Callable[[Array, Array], dict[str, float]]
    resampled_scores: Callable[[Array, Array, np.random.Generator, int], dict[str, Array]]
    prediction_rows: Callable[[Examples, Array, Sequence[str]], list[dict[str, object]]]
