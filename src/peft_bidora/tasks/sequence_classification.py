"""Classify a text or a pair of texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from peft_bidora.data.columns import CLASSES
from peft_bidora.data.examples import Examples
from peft_bidora.data.labels import check_labels_known, label_names
from peft_bidora.tasks.base_model import load_weights
from peft_bidora.tasks.encoding import encode_texts, padding_collator
from peft_bidora.tasks.logits import forward
from peft_bidora.tasks.metrics import class_table, classification_scores, confusion, resample
from peft_bidora.tasks.task import Array, Columns, TaskKind, TaskOptions

NAME = "sequence-classification"


@dataclass(frozen=True)
class SequenceClassification:
    """Tell classes apart; a label is the name of a class, a prediction the logits of a row, (classes,).

    Args:
        label_names: the classes, in the order of the outputs.
    """

    label_names: tuple[str, ...]

    name: ClassVar[str] = NAME
    peft_type: ClassVar[str] = "SEQ_CLS"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro", "matthews")
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    has_logits: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return len(self.label_names)

    def check(self, examples: Examples) -> None:
        """Raise DataError if a label is no class of the train rows."""
        check_labels_known(self.label_names, examples)

    def load_model(self, source: str, tokenizer: Any, attention: str | None = None) -> Any:
        """Return the pretrained model in float32 with a new head, one output a class."""
        return load_weights(
            source,
            auto_class(),
            tokenizer,
            attention,
            id2label=dict(enumerate(self.label_names)),
            label2id={name: index for index, name in enumerate(self.label_names)},
        )

    def encode(self, examples: Examples, tokenizer: Any, max_length: int) -> Columns:
        """Return columns of token ids, unpadded, and `labels` where the examples have them."""
        columns = encode_texts(examples, tokenizer, max_length)
        if examples.labels is not None:
            columns["labels"] = self._indices(examples.labels).tolist()
        return columns

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
        """Return the function that pads encoded rows into a batch."""
        return padding_collator(tokenizer)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Return the cross entropy in mean nats an example: −Σ_i log p(label_i) / rows.

        Args:
            outputs: has `logits`, (rows, classes).
            labels: (rows,), class indices.
            num_items_in_batch: rows of the whole accumulated batch; None for the rows given here.
        """
        from torch.nn.functional import cross_entropy

        rows = labels.numel() if num_items_in_batch is None else num_items_in_batch
        return cross_entropy(outputs["logits"].float(), labels, reduction="sum") / rows

    def decode(self, logits: Array, labels: Array | None = None) -> list[Array]:
        """Return the logits of each row."""
        return list(logits)

    def predict_batch(self, model: Any, inputs: Any, tokenizer: Any) -> list[Array]:
        """Return the logits of each row of a batch."""
        return self.decode(forward(model, inputs))

    def scores(self, predictions: Sequence[Array], labels: Sequence[str]) -> dict[str, float]:
        """Return accuracy, f1_macro and matthews."""
        return {name: float(value) for name, value in classification_scores(self._counts(predictions, labels)).items()}

    def resampled_scores(
        self, predictions: Sequence[Array], labels: Sequence[str], rng: np.random.Generator, resamples: int
    ) -> dict[str, Array]:
        """Return (resamples,) values of each metric, over rows drawn with replacement."""
        return classification_scores(resample(self._counts(predictions, labels), rng, resamples))

    def details(self, predictions: Sequence[Array], labels: Sequence[str]) -> dict[str, Any]:
        """Return the confusion matrix, rows true and columns predicted, and precision, recall and F1 by class."""
        counts = self._counts(predictions, labels)
        return {"by_class": class_table(counts, self.label_names), "confusion": counts.tolist()}

    def prediction_columns(self, predictions: Sequence[Array]) -> list[dict[str, object]]:
        """Return `predicted_label`, and `probabilities` by label."""
        from scipy.special import softmax

        probabilities = softmax(np.asarray(predictions, dtype=np.float64), axis=-1)
        return [
            {
                "predicted_label": self.label_names[int(values.argmax())],
                "probabilities": dict(zip(self.label_names, values.tolist(), strict=True)),
            }
            for values in probabilities
        ]

    def state(self) -> dict[str, Any]:
        """Return the classes."""
        return {"label_names": list(self.label_names)}

    def _indices(self, labels: Sequence[str]) -> Array:
        index = {name: position for position, name in enumerate(self.label_names)}
        return np.array([index[label] for label in labels])

    def _counts(self, predictions: Sequence[Array], labels: Sequence[str]) -> Array:
        return confusion(np.asarray(predictions).argmax(-1), self._indices(labels), self.outputs)


def auto_class(_config: Any = None) -> Any:
    """Return the class that builds the model."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification


def fit(options: TaskOptions, train: Examples, lower: Examples) -> SequenceClassification:
    """Return the task of the classes of the train rows."""
    return SequenceClassification(tuple(label_names(train)))


SEQUENCE_CLASSIFICATION = TaskKind(
    name=NAME,
    auto_class=auto_class,
    layout=lambda options, tokenizer: CLASSES,
    fit=fit,
    restore=lambda state: SequenceClassification(tuple(state["label_names"])),
)
