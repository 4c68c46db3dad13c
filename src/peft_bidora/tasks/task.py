"""What the recipe needs to know of a task: before the rows are read a `TaskKind`, after it a `Task`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from peft_bidora.data.columns import Layout
from peft_bidora.data.examples import Examples
from peft_bidora.data.table import Table

Array = NDArray[Any]
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class TaskOptions:
    """What a task is told beyond its data, by the user and by the model; each task reads its own.

    Args:
        class_weights: "none", "balanced" (rows / (classes · rows of the class)), or a weight by label, 1 for others.
        multi_label: whether a row has a list of labels; None to find out from the rows.
        sequences: "text" or "protein"; None for protein where the tokenizer is one of ESM.
        generation: keyword arguments of transformers' `GenerationConfig`.
        encoder_decoder: whether the model is one, by its configuration.
        seed: of what a task draws when it predicts.
    """

    class_weights: Literal["none", "balanced"] | Mapping[str, float] = "none"
    multi_label: bool | None = None
    sequences: Literal["text", "protein"] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    encoder_decoder: bool = False
    seed: int = 0


class Task(Protocol):
    """A task, bound to what it learned of the training rows.

    A prediction and a label are what the task makes of them: of one row each, in the user's terms.
    """

    @property
    def name(self) -> str:
        """The recipe's `task`."""

    @property
    def peft_type(self) -> str:
        """PEFT's `task_type`, which decides what heads are saved with the adapter."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of its scores; the first chooses the best checkpoint where the user names none."""

    @property
    def lower_is_better(self) -> tuple[str, ...]:
        """Those of `metrics` that fall as the model gets better."""

    @property
    def outputs(self) -> int | None:
        """The width of the head; None where the model brings its own."""

    @property
    def loss(self) -> Callable[..., Any] | None:
        """(outputs, labels, number of items in the accumulated batch) -> mean nats an item; None for the model's."""

    @property
    def has_logits(self) -> bool:
        """Whether the selection rows are scored from the logits; otherwise by the loss alone."""

    def check(self, examples: Examples) -> None:
        """Raise DataError if the examples have labels that the train rows do not provide for."""

    def load_model(self, source: str, tokenizer: Any, **loading: Any) -> Any:
        """Return the pretrained model in float32, with a new head where the task needs one.

        Args:
            source: a folder or a hub name.
            tokenizer: of the model.
            **loading: what else transformers' `from_pretrained` is told.
        """

    def encode(self, examples: Examples, tokenizer: Any, max_length: int) -> Columns:
        """Return columns of unpadded model inputs, with `labels` where the examples have them."""

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
        """Return the function that pads a list of encoded rows into a batch of tensors."""

    def decode(self, logits: Array, labels: Array | None) -> list[Any]:
        """Return the prediction of each row of a batch from its logits (and its label ids, which mark positions)."""

    def predict_batch(self, model: Any, inputs: Any, tokenizer: Any) -> list[Any]:
        """Return the prediction of each row of a collated batch that lies on the model's device."""

    def scores(self, predictions: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
        """Return each metric."""

    def resampled_scores(
        self, predictions: Sequence[Any], labels: Sequence[Any], rng: np.random.Generator, resamples: int
    ) -> dict[str, Array]:
        """Return (resamples,) values of each metric, over rows drawn with replacement."""

    def details(self, predictions: Sequence[Any], labels: Sequence[Any]) -> dict[str, Any]:
        """Return what is told beyond the metrics, as JSON: a table by class, say."""

    def prediction_columns(self, predictions: Sequence[Any]) -> list[dict[str, object]]:
        """Return the columns that a prediction file adds to each row."""

    def state(self) -> dict[str, Any]:
        """Return what the task learned of the training rows, as JSON; `TaskKind.restore` reads it back."""


@dataclass(frozen=True)
class TaskKind:
    """What a task is before it has seen rows.

    Args:
        name: the recipe's `task`.
        auto_class: the model's configuration -> the transformers class that builds the model.
        layout: options and tokenizer -> how the rows are read.
        fit: options, train rows, lower rows -> the task.
        restore: what `Task.state` returned -> the task.
        strata: what a split keeps in proportion; None where the labels are classes and each split needs every one.
        arrange: turns a table of another shape into one with a text and a label column.
        notes: tokenizer and train rows -> what a user should know and may be content with.
        reading: what `Task.state` returned, the texts of some row, tokenizer -> Python that gets a prediction out of
            the stock `model` and `tokenizer`.
        encoding_notes: task, tokenizer, most tokens of a row, name and rows of a split -> the same of its encoding.
        learned: rows of the train file -> the rows that are learned from; a row may become several.
        scored: rows of a selection or test split -> the rows that are scored; several may become one.
        folded: task, merged model, tokenizer -> the state of what is left to do outside of the model; the model takes
            over the rest: the unit of its numbers, say, or how it writes.
        tokenizer: makes a tokenizer ready for the task, in place or not; it is saved with the weights.
        reads: the keys of a recipe that this task reads and others do not.
        classes: of labelled rows, a name for each class that a row, or a word of it, has.
    """

    name: str
    auto_class: Callable[[Any], Any]
    layout: Callable[[TaskOptions, Any], Layout]
    fit: Callable[[TaskOptions, Examples, Examples], Task]
    restore: Callable[[dict[str, Any]], Task]
    strata: Callable[[Examples], list[str] | None] = lambda _: None
    arrange: Callable[[Table], Table] = lambda table: table
    notes: Callable[[TaskOptions, Any, Examples], list[str]] = lambda *_: []
    reading: Callable[[dict[str, Any], tuple[Any, ...], Any], list[str]] = lambda *_: []
    encoding_notes: Callable[[Task, Any, int, str, Examples], list[str]] = lambda *_: []
    learned: Callable[[Examples], Examples] = lambda examples: examples
    scored: Callable[[Examples], Examples] = lambda examples: examples
    folded: Callable[[Task, Any, Any], dict[str, Any]] = lambda task, *_: task.state()
    tokenizer: Callable[[Any], Any] = lambda tokenizer: tokenizer
    reads: frozenset[str] = frozenset()
    classes: Callable[[Examples], Iterable[str]] = lambda _: ()
