"""Classify a text or a pair of texts: encoding, model, loss, metrics and prediction rows."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from peft_bidora.data.examples import Examples
from peft_bidora.errors import ModelError
from peft_bidora.tasks.metrics import classification_scores, confusion, resample
from peft_bidora.tasks.task import Array, Task

NAME = "sequence-classification"

log = logging.getLogger(__name__)


def auto_class() -> Any:
    """Return the class that builds the model."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification


def load_model(source: str, label_names: Sequence[str], tokenizer: Any, attention: str | None = None) -> Any:
    """Return the pretrained model in float32 with a new head, one output a class.

    Args:
        source: a folder or a hub name.
        label_names: the classes, in the order of the outputs.
        tokenizer: whose padding token the model must know.
        attention: transformers' `attn_implementation`; None for its choice.

    Raises:
        ModelError: the weights cannot be loaded.
    """
    import torch

    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        with _quiet():
            model, report = auto_class().from_pretrained(
                source,
                dtype=torch.float32,
                id2label=dict(enumerate(label_names)),
                label2id={name: index for index, name in enumerate(label_names)},
                pad_token_id=tokenizer.pad_token_id,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # safetensors, torch and transformers each raise types of their own
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The weights of {source} cannot be loaded ({type(error).__name__}: {reason}).") from error
    missing = sorted(key for key in report["missing_keys"] if key.startswith(f"{model.base_model_prefix}."))
    if missing:
        log.warning(
            "%s has no weights for %d tensors of the encoder, which start at random values: %s",
            source,
            len(missing),
            ", ".join(missing[:5]),
        )
    return model


def encode(examples: Examples, tokenizer: Any, label_names: Sequence[str], max_length: int) -> Any:
    """Return a `datasets.Dataset` of token columns, unpadded, and `labels` where the examples have them.

    Args:
        examples: (rows,), single texts or pairs.
        tokenizer: of the model.
        label_names: the classes, in the order of the outputs.
        max_length: the most tokens of a row; longer ones are cut, the longer text of a pair first.
    """
    from datasets import Dataset

    sides = [list(side) for side in zip(*examples.texts, strict=True)]
    columns = dict(tokenizer(*sides, truncation=True, max_length=max_length))
    if examples.labels is not None:
        index = {name: position for position, name in enumerate(label_names)}
        columns["labels"] = [index[label] for label in examples.labels]
    return Dataset.from_dict(columns)


def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Return the cross entropy in mean nats an example: −Σ_i log p(label_i) / rows.

    Args:
        outputs: has `logits`, (rows, classes).
        labels: (rows,), class indices.
        num_items_in_batch: rows of the whole accumulated batch; None for the rows given here.
    """
    from torch.nn.functional import cross_entropy

    rows = labels.numel() if num_items_in_batch is None else num_items_in_batch
    return cross_entropy(outputs["logits"].float(), labels, reduction="sum") / rows


def scores(predictions: Array, labels: Array) -> dict[str, float]:
    """Return accuracy, f1_macro and matthews.

    Args:
        predictions: (rows, classes), logits.
        labels: (rows,), class indices.
    """
    return {name: float(value) for name, value in classification_scores(_counts(predictions, labels)).items()}


def resampled_scores(predictions: Array, labels: Array, rng: np.random.Generator, resamples: int) -> dict[str, Array]:
    """Return (resamples,) values of each metric, over rows drawn with replacement."""
    return classification_scores(resample(_counts(predictions, labels), rng, resamples))


def prediction_rows(examples: Examples, predictions: Array, label_names: Sequence[str]) -> list[dict[str, object]]:
    """Return each input row with `predicted_label` and `probabilities` by label.

    Args:
        examples: (rows,), in the order of the predictions.
        predictions: (rows, classes), logits.
        label_names: the classes, in the order of the outputs.
    """
    from scipy.special import softmax

    probabilities = softmax(predictions.astype(np.float64), axis=-1)
    return [
        {
            **row,
            "predicted_label": label_names[int(values.argmax())],
            "probabilities": dict(zip(label_names, values.tolist(), strict=True)),
        }
        for row, values in zip(examples.rows, probabilities, strict=True)
    ]


def _counts(predictions: Array, labels: Array) -> Array:
    return confusion(predictions.argmax(-1), labels, predictions.shape[-1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the expected report of a newly initialised head, and the bar of loading it, off the screen."""
    from transformers.utils import logging as noise

    verbosity, bars = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity_error()
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(verbosity)
        if bars:
            noise.enable_progress_bar()


SEQUENCE_CLASSIFICATION = Task(
    name=NAME,
    peft_type="SEQ_CLS",
    chosen_by="accuracy",
    auto_class=auto_class,
    load_model=load_model,
    encode=encode,
    loss=loss,
    scores=scores,
    resampled_scores=resampled_scores,
    prediction_rows=prediction_rows,
)
