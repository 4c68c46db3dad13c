"""Find all the classes of a text that apply: none, one or several."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from peft_bidora.data.examples import Examples
from peft_bidora.data.labels import check_labels_known, in_order
from peft_bidora.data.wording import places, rows_have
from peft_bidora.errors import DataError
from peft_bidora.tasks.base_model import sequence_classifier
from peft_bidora.tasks.class_weights import class_weights
from peft_bidora.tasks.encoding import encode_texts, padding_collator
from peft_bidora.tasks.logits import at_least_float32, forward
from peft_bidora.tasks.multi_label_metrics import label_counts, multi_label_scores, table_by_label
from peft_bidora.tasks.resampling import resampled
from peft_bidora.tasks.task import Array, Columns, TaskOptions
from peft_bidora.tasks.weights import load_weights


@dataclass(frozen=True)
class MultiLabelClassification:
    """Decide for each class by itself whether it applies: where its probability is above 0.5, its logit above 0.

    A label is the tuple of the classes of a row, a prediction the logits of a row, (classes,).

    Args:
        label_names: the classes, in the order of the outputs.
        class_weights: (classes,), what a row with the class weighs against one without it; None for 1.
    """

    label_names: tuple[str, ...]
    class_weights: tuple[float, ...] | None = None

    name: ClassVar[str] = "sequence-classification"
    peft_type: ClassVar[str] = "SEQ_CLS"
    metrics: ClassVar[tuple[str, ...]] = ("f1_micro", "f1_macro", "subset_accuracy")
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    has_logits: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return len(self.label_names)

    def check(self, examples: Examples) -> None:
        """Raise DataError if a row has a class that the train rows lack, or a class in the place of a list."""
        check_lists(examples)
        check_labels_known(self.label_names, examples)

    def load_model(self, source: str, tokenizer: Any, **loading: Any) -> Any:
        """Return the pretrained model in float32 with a new head, one output a class."""
        return load_weights(
            source,
            sequence_classifier(),
            tokenizer,
            problem_type="multi_label_classification",
            label_names=self.label_names,
            **loading,
        )

    def encode(self, examples: Examples, tokenizer: Any, max_length: int) -> Columns:
        """Return columns of token ids, unpadded, and `labels`, 1.0 for each class of a row, where there are labels."""
        columns = encode_texts(examples, tokenizer, max_length)
        if examples.labels is not None:
            columns["labels"] = self._applies(examples.labels).astype(float).tolist()
        return columns

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
        """Return the function that pads encoded rows into a batch."""
        return padding_collator(tokenizer)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Return the binary cross entropy in mean nats a label, with y in {0, 1} and p = sigmoid(logit).

        −Σ_i Σ_k [w_k y_ik log p_ik + (1 − y_ik) log(1 − p_ik)] / (rows · classes)

        Args:
            outputs: has `logits`, (rows, classes).
            labels: (rows, classes), y.
            num_items_in_batch: rows · classes of the whole accumulated batch; None for the rows given here.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        logits = at_least_float32(outputs["logits"])
        items = labels.numel() if num_items_in_batch is None else num_items_in_batch
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        loss = binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), pos_weight=weights, reduction="sum")
        return loss / items

    def decode(self, logits: Array, labels: Array | None = None) -> list[Array]:
        """Return the logits of each row."""
        return list(logits)

    def predict_batch(self, model: Any, inputs: Any, tokenizer: Any) -> list[Array]:
        """Return the logits of each row of a batch."""
        return self.decode(forward(model, inputs))

    def scores(self, predictions: Sequence[Array], labels: Sequence[tuple[str, ...]]) -> dict[str, float]:
        """Return f1_micro, f1_macro and subset_accuracy."""
        found = multi_label_scores(_predicted(predictions), self._applies(labels), np.ones(len(labels)))
        return {name: float(value) for name, value in found.items()}

    def resampled_scores(
        self, predictions: Sequence[Array], labels: Sequence[tuple[str, ...]], rng: np.random.Generator, resamples: int
    ) -> dict[str, Array]:
        """Return (resamples,) values of each metric, over rows drawn with replacement."""
        predicted, true = _predicted(predictions), self._applies(labels)
        return resampled(lambda counts: multi_label_scores(predicted, true, counts), len(true), rng, resamples)

    def details(self, predictions: Sequence[Array], labels: Sequence[tuple[str, ...]]) -> dict[str, Any]:
        """Return precision, recall and F1 by class."""
        counts = label_counts(_predicted(predictions), self._applies(labels), np.ones(len(labels)))
        return {"by_class": table_by_label(counts, self.label_names)}

    def prediction_columns(self, predictions: Sequence[Array]) -> list[dict[str, object]]:
        """Return `predicted_labels`, those that apply, and `probabilities` by label."""
        from scipy.special import expit

        logits = np.asarray(predictions, dtype=np.float64)
        return [
            {
                "predicted_labels": [name for name, logit in zip(self.label_names, row, strict=True) if logit > 0],
                "probabilities": dict(zip(self.label_names, expit(row).tolist(), strict=True)),
            }
            for row in logits
        ]

    def state(self) -> dict[str, Any]:
        """Return the classes, and their weights where they have any."""
        weights = {} if self.class_weights is None else {"class_weights": list(self.class_weights)}
        return {"multi_label": True, "label_names": list(self.label_names), **weights}

    def _applies(self, labels: Sequence[tuple[str, ...]]) -> Array:
        """Return whether each class is among the labels of each row: (rows, classes)."""
        sets = [set(names) for names in labels]
        return np.array([[name in names for name in self.label_names] for names in sets])


def fit_multi_label(options: TaskOptions, train: Examples, lower: Examples) -> MultiLabelClassification:
    """Return the task of the classes of the train rows; "balanced" weighs rows without a class / rows with it.

    Raises:
        DataError: a row has a class in the place of a list, or no row has any class.
        RecipeError: a class is weighed that there is not.
    """
    check_lists(train)
    names = in_order({name for label in train.required_labels() for name in label})
    if not names:
        raise DataError(f"{train.source} has only empty lists of labels; expected at least one label. Add such rows.")

    def balanced() -> list[float]:
        found = Counter(name for label in lower.required_labels() for name in label)
        return [max(len(lower) - found[name], 1) / max(found[name], 1) for name in names]

    return MultiLabelClassification(tuple(names), class_weights(options.class_weights, names, balanced))


def has_label_lists(examples: Examples) -> bool:
    """Return whether a row has a list of classes in the place of a class."""
    return any(isinstance(label, tuple) for label in examples.labels or ())


def check_lists(examples: Examples, expected: bool = True) -> None:
    """Raise DataError if rows have a class in the place of a list of classes; or, with expected=False, a list."""
    if examples.labels is None:
        return
    pairs = zip(examples.labels, examples.lines, strict=True)
    lines = [line for label, line in pairs if isinstance(label, tuple) != expected]
    if lines:
        what, others = ("a single label", "lists of labels") if expected else ("a list of labels", "a single label")
        raise DataError(
            f"{examples.source}: {rows_have(len(lines))} {what} ({places(examples.unit, lines)}) where others have"
            f" {others}. Write every label as a list, or none."
        )


def rarest_labels(examples: Examples) -> list[str]:
    """Return of each row the class that the fewest rows have, or "" where it has none; a split keeps these."""
    labels = [(label,) if isinstance(label, str) else label for label in examples.required_labels()]
    found = Counter(name for label in labels for name in label)
    return [min(label, key=lambda name: (found[name], name), default="") for label in labels]


def _predicted(predictions: Sequence[Array]) -> Array:
    return np.asarray(predictions) > 0
