"""Classify a text, a pair of texts or a protein sequence."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from peft_bidora.data.columns import CLASSES, Layout
from peft_bidora.data.examples import Examples
from peft_bidora.data.labels import check_labels_known, label_names
from peft_bidora.data.targets import NUMERAL, read_class_or_classes, read_classes
from peft_bidora.data.wording import listed
from peft_bidora.errors import DataError
from peft_bidora.tasks.base_model import sequence_classifier
from peft_bidora.tasks.calibration import calibration_cells, calibration_error, resampled_calibration_error
from peft_bidora.tasks.class_weights import class_weights
from peft_bidora.tasks.encoding import encode_texts, padding_collator, text_reading
from peft_bidora.tasks.logits import at_least_float32, forward
from peft_bidora.tasks.metrics import (
    Confusion,
    class_sums,
    class_table,
    classification_scores,
    confusion,
    resampled_classification_scores,
)
from peft_bidora.tasks.multi_label import (
    MultiLabelClassification,
    check_lists,
    fit_multi_label,
    has_label_lists,
    rarest_labels,
)
from peft_bidora.tasks.protein import sequence_layout, sequence_notes
from peft_bidora.tasks.task import Array, Columns, Task, TaskKind, TaskOptions
from peft_bidora.tasks.truncation import text_notes
from peft_bidora.tasks.weights import load_weights

NAME = "sequence-classification"
SHOWN_NUMBERS = 5
LARGEST_MATRIX = 200  # classes: beyond it the predictions tell the same in fewer lines


@dataclass(frozen=True)
class SequenceClassification:
    """Tell classes apart; a label is the name of a class, a prediction the logits of a row, (classes,).

    Args:
        label_names: the classes, in the order of the outputs.
        class_weights: (classes,), what a row of each class weighs in the loss; None for 1.
    """

    label_names: tuple[str, ...]
    class_weights: tuple[float, ...] | None = None

    name: ClassVar[str] = NAME
    peft_type: ClassVar[str] = "SEQ_CLS"
    lower_is_better: ClassVar[tuple[str, ...]] = ("ece",)
    has_logits: ClassVar[bool] = True

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the scores: of two classes, the F1 of each is one too."""
        names = ("accuracy", "f1_macro", "f1_weighted", "matthews")
        return *names, *(f"f1_of_{name}" for name in self._scored_names), "ece"

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return len(self.label_names)

    def check(self, examples: Examples) -> None:
        """Raise DataError if a label is no class of the train rows."""
        check_lists(examples, expected=False)
        check_labels_known(self.label_names, examples)

    def load_model(self, source: str, tokenizer: Any, **loading: Any) -> Any:
        """Return the pretrained model in float32 with a new head, one output a class."""
        return load_weights(
            source,
            sequence_classifier(),
            tokenizer,
            label_names=self.label_names,
            **loading,
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
        """Return the cross entropy in mean nats an example: −Σ_i w(label_i) log p(label_i) / rows.

        The weights are not divided by their sum over the batch, as torch's mean would: the losses of micro-batches
        add up to that of their batch whatever classes each has.

        Args:
            outputs: has `logits`, (rows, classes).
            labels: (rows,), class indices.
            num_items_in_batch: rows of the whole accumulated batch; None for the rows given here.
        """
        from torch.nn.functional import cross_entropy

        rows = labels.numel() if num_items_in_batch is None else num_items_in_batch
        logits = at_least_float32(outputs["logits"])
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return cross_entropy(logits, labels, weight=weights, reduction="sum") / rows

    def decode(self, logits: Array, labels: Array | None = None) -> list[Array]:
        """Return the logits of each row."""
        return list(logits)

    def predict_batch(self, model: Any, inputs: Any, tokenizer: Any) -> list[Array]:
        """Return the logits of each row of a batch."""
        return self.decode(forward(model, inputs))

    def scores(self, predictions: Sequence[Array], labels: Sequence[str]) -> dict[str, float]:
        """Return each of `metrics`; ece is the expected calibration error."""
        cells = calibration_cells(_probabilities(predictions), self._indices(labels))
        found = classification_scores(class_sums(self._confusion(predictions, labels)), self._scored_names)
        return {
            **{name: float(value) for name, value in found.items()},
            "ece": float(calibration_error(cells, cells.counts)),
        }

    def resampled_scores(
        self, predictions: Sequence[Array], labels: Sequence[str], rng: np.random.Generator, resamples: int
    ) -> dict[str, Array]:
        """Return (resamples,) values of each metric, over rows drawn with replacement."""
        cells = calibration_cells(_probabilities(predictions), self._indices(labels))
        return {
            **resampled_classification_scores(self._confusion(predictions, labels), rng, resamples, self._scored_names),
            "ece": resampled_calibration_error(cells, rng, resamples),
        }

    def details(self, predictions: Sequence[Array], labels: Sequence[str]) -> dict[str, Any]:
        """Return precision, recall and F1 by class and, of up to 200 classes, the confusion matrix, rows true."""
        found = self._confusion(predictions, labels)
        matrix = {"confusion": found.matrix().tolist()} if self.outputs <= LARGEST_MATRIX else {}
        return {"by_class": class_table(class_sums(found), self.label_names), **matrix}

    def prediction_columns(self, predictions: Sequence[Array]) -> list[dict[str, object]]:
        """Return `predicted_label`, and `probabilities` by label."""
        return [
            {
                "predicted_label": self.label_names[int(values.argmax())],
                "probabilities": dict(zip(self.label_names, values.tolist(), strict=True)),
            }
            for values in _probabilities(predictions)
        ]

    def state(self) -> dict[str, Any]:
        """Return the classes, and their weights where they have any."""
        weights = {} if self.class_weights is None else {"class_weights": list(self.class_weights)}
        return {"label_names": list(self.label_names), **weights}

    @property
    def _scored_names(self) -> tuple[str, ...]:
        return self.label_names if self.outputs == 2 else ()

    def _indices(self, labels: Sequence[str]) -> Array:
        index = {name: position for position, name in enumerate(self.label_names)}
        return np.array([index[label] for label in labels])

    def _confusion(self, predictions: Sequence[Array], labels: Sequence[str]) -> Confusion:
        return confusion(np.asarray(predictions).argmax(-1), self._indices(labels), self.outputs)


def layout(options: TaskOptions, tokenizer: Any) -> Layout:
    """Return how the rows are read: a text, a pair or a protein sequence, and a class or a list of classes."""
    readers = {None: read_class_or_classes, True: read_classes, False: CLASSES.label}
    return sequence_layout(replace(CLASSES, label=readers[options.multi_label]), options, tokenizer)


def fit(options: TaskOptions, train: Examples, lower: Examples) -> Task:
    """Return the task of the classes of the train rows; "balanced" weights are those of the lower rows.

    Raises:
        DataError: there are fewer than two classes, or the labels are numbers that hardly repeat.
        RecipeError: a class is weighed that there is not.
    """
    if has_label_lists(train):
        return fit_multi_label(options, train, lower)
    _refuse_numbers(train)
    names = label_names(train)

    def balanced() -> list[float]:
        found = Counter(lower.required_labels())
        return [len(lower) / (len(names) * max(found[name], 1)) for name in names]

    return SequenceClassification(tuple(names), class_weights(options.class_weights, names, balanced))


def restore(state: dict[str, Any]) -> Task:
    """Return the task of a state."""
    made = MultiLabelClassification if state.get("multi_label") else SequenceClassification
    weights = state.get("class_weights")
    return made(tuple(state["label_names"]), None if weights is None else tuple(weights))


def reading(state: dict[str, Any], texts: tuple[Any, ...], _tokenizer: Any) -> list[str]:
    """Return the Python that names the class of a text, or those that apply to it, by the stock model."""
    chosen = "predicted_label = labels[model(**inputs).logits[0].argmax()]"
    if state.get("multi_label"):
        chosen = "predicted_labels = [label for label, logit in zip(labels, model(**inputs).logits[0]) if logit > 0]"
    return [f"labels = {state['label_names']!r}", text_reading(texts), chosen]


def _refuse_numbers(train: Examples) -> None:
    """Raise DataError if the labels are fractions that hardly repeat: a cell of CSV does not say it is a number."""
    found = Counter(train.required_labels())
    fractions = [name for name in found if NUMERAL.fullmatch(name) and not float(name).is_integer()]
    if fractions and min(found.values()) == 1 and all(NUMERAL.fullmatch(name) for name in found):
        raise DataError(
            f"{train.source} has the numbers {listed(sorted(found, key=float)[:SHOWN_NUMBERS])} and others as labels,"
            " some of them once; expected classes of several rows each. To predict numbers, set task=regression."
        )


def _probabilities(predictions: Sequence[Array]) -> Array:
    from scipy.special import softmax

    found: Array = softmax(np.asarray(predictions, dtype=np.float64), axis=-1)
    return found


SEQUENCE_CLASSIFICATION = TaskKind(
    name=NAME,
    auto_class=sequence_classifier,
    layout=layout,
    fit=fit,
    restore=restore,
    strata=lambda train: rarest_labels(train) if has_label_lists(train) else None,
    notes=sequence_notes,
    reading=reading,
    encoding_notes=text_notes,
    reads=frozenset({"classification.class_weights", "classification.multi_label", "data.sequences"}),
    classes=lambda examples: chain.from_iterable(
        [label] if isinstance(label, str) else label for label in examples.required_labels()
    ),
)
