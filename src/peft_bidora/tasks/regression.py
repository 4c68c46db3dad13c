"""Predict one number for a text, a pair of texts or a protein sequence."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from peft_bidora.data.columns import CLASSES, Layout
from peft_bidora.data.examples import Examples
from peft_bidora.data.targets import read_number
from peft_bidora.errors import DataError
from peft_bidora.tasks.base_model import sequence_classifier
from peft_bidora.tasks.encoding import encode_texts, padding_collator, text_reading
from peft_bidora.tasks.logits import at_least_float32, forward
from peft_bidora.tasks.protein import sequence_layout, sequence_notes
from peft_bidora.tasks.regression_metrics import regression_scores
from peft_bidora.tasks.resampling import resampled
from peft_bidora.tasks.task import Array, Columns, Task, TaskKind, TaskOptions
from peft_bidora.tasks.truncation import text_notes
from peft_bidora.tasks.weights import load_weights

NAME = "regression"
NUMBERS = replace(CLASSES, label=read_number, label_names=("label", "labels", "target", "score", "value", "y"))
BINS = 10


@dataclass(frozen=True)
class Regression:
    """Predict a number; a label and a prediction are numbers in the user's unit.

    The model learns z = (label − mean) / standard_deviation, so that the learning rates that suit one unit suit all;
    a prediction is mean + standard_deviation · logit.

    Args:
        mean: of the target on the lower split.
        standard_deviation: the same, over all its rows (population).
    """

    mean: float
    standard_deviation: float

    name: ClassVar[str] = NAME
    peft_type: ClassVar[str] = "SEQ_CLS"
    metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "mse", "mae", "r2")
    lower_is_better: ClassVar[tuple[str, ...]] = ("mse", "mae")
    has_logits: ClassVar[bool] = True
    outputs: ClassVar[int] = 1

    def check(self, examples: Examples) -> None:
        """Any number may be predicted."""

    def load_model(self, source: str, tokenizer: Any, **loading: Any) -> Any:
        """Return the pretrained model in float32 with a new head of one output."""
        return load_weights(
            source, sequence_classifier(), tokenizer, num_labels=1, problem_type="regression", **loading
        )

    def encode(self, examples: Examples, tokenizer: Any, max_length: int) -> Columns:
        """Return columns of token ids, unpadded, and `labels` in standard deviations where the examples have them."""
        columns = encode_texts(examples, tokenizer, max_length)
        if examples.labels is not None:
            columns["labels"] = ((np.asarray(examples.labels) - self.mean) / self.standard_deviation).tolist()
        return columns

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
        """Return the function that pads encoded rows into a batch."""
        return padding_collator(tokenizer)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Return the mean squared error in squared standard deviations: Σ_i (logit_i − z_i)² / rows.

        Args:
            outputs: has `logits`, (rows, 1).
            labels: (rows,), z.
            num_items_in_batch: rows of the whole accumulated batch; None for the rows given here.
        """
        rows = labels.numel() if num_items_in_batch is None else num_items_in_batch
        return (at_least_float32(outputs["logits"]).squeeze(-1) - labels).square().sum() / rows

    def decode(self, logits: Array, labels: Array | None = None) -> list[float]:
        """Return the number of each row, in the user's unit."""
        numbers: list[float] = (self.mean + self.standard_deviation * np.asarray(logits, np.float64)[:, 0]).tolist()
        return numbers

    def predict_batch(self, model: Any, inputs: Any, tokenizer: Any) -> list[float]:
        """Return the number of each row of a batch."""
        return self.decode(forward(model, inputs))

    def scores(self, predictions: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
        """Return pearson, spearman, mse, mae and r2, the errors in the user's unit."""
        found = regression_scores(np.asarray(predictions), np.asarray(labels), np.ones(len(labels)))
        return {name: float(value) for name, value in found.items()}

    def resampled_scores(
        self, predictions: Sequence[float], labels: Sequence[float], rng: np.random.Generator, resamples: int
    ) -> dict[str, Array]:
        """Return (resamples,) values of each metric, over rows drawn with replacement."""
        predicted, true = np.asarray(predictions), np.asarray(labels)
        return resampled(lambda counts: regression_scores(predicted, true, counts), len(true), rng, resamples)

    def details(self, predictions: Sequence[float], labels: Sequence[float]) -> dict[str, Any]:
        """Return nothing: the metrics say it all."""
        return {}

    def prediction_columns(self, predictions: Sequence[float]) -> list[dict[str, object]]:
        """Return `predicted_value`."""
        return [{"predicted_value": value} for value in predictions]

    def state(self) -> dict[str, Any]:
        """Return mean and standard deviation."""
        return asdict(self)


def layout(options: TaskOptions, tokenizer: Any) -> Layout:
    """Return how the rows are read: a text, a pair or a protein sequence, and a number."""
    return sequence_layout(NUMBERS, options, tokenizer)


def fit(options: TaskOptions, train: Examples, lower: Examples) -> Regression:
    """Return the task with the mean and standard deviation of the lower split.

    Raises:
        DataError: the target is constant, or spreads too little or too far for float64.
    """
    values = np.asarray(lower.required_labels())
    least, most = values.min(), values.max()
    if least == most:
        raise DataError(
            f"{train.source}: the target is {least:g} in all {len(values)} rows of the lower split; expected different"
            " numbers. Check data.label, or add rows."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        mean, variance = float(values.mean()), float(values.var())
    if not 0 < variance < np.inf:
        raise DataError(
            f"{train.source}: the target runs from {least:g} to {most:g} in the lower split, and no variance can be"
            " computed of that. Write it in another unit."
        )
    return Regression(mean, float(np.sqrt(variance)))


def quantile_bins(examples: Examples) -> list[str]:
    """Return which tenth of the sorted targets each row is in; equal targets are all where their middle is."""
    from scipy.stats import rankdata

    middle = rankdata(examples.required_labels()) - 0.5
    return [str(int(place)) for place in BINS * middle / len(middle)]


def reading(state: dict[str, Any], texts: tuple[Any, ...], _tokenizer: Any) -> list[str]:
    """Return the Python that turns the logits of the stock model into the user's unit."""
    numbers = [
        f"mean, standard_deviation = {state['mean']!r}, {state['standard_deviation']!r}",
        "prediction = mean + standard_deviation * model(**inputs).logits[:, 0]",
    ]
    if (state["mean"], state["standard_deviation"]) == (0.0, 1.0):
        numbers = ["prediction = model(**inputs).logits[:, 0]"]
    return [
        text_reading(texts),
        *numbers,
    ]


def folded(task: Task, model: Any, _tokenizer: Any) -> dict[str, Any]:
    """Put mean and standard deviation into the last layer of a model, if it has a bias to take the mean.

    A server then gives numbers in the user's unit; a pipeline leaves them as they are.
    """
    import torch
    from torch import nn

    state: dict[str, Any] = task.state()
    inside = f"{model.base_model_prefix}."
    layers = [
        each
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear) and each.out_features == 1 and not name.startswith(inside)
    ]
    if len(layers) != 1 or layers[0].bias is None:
        return state
    with torch.no_grad():
        layers[0].weight.mul_(state["standard_deviation"])
        layers[0].bias.mul_(state["standard_deviation"]).add_(state["mean"])
    model.config.problem_type = "regression"
    return Regression(mean=0.0, standard_deviation=1.0).state()


REGRESSION = TaskKind(
    name=NAME,
    auto_class=sequence_classifier,
    layout=layout,
    fit=fit,
    restore=lambda state: Regression(**state),
    strata=quantile_bins,
    notes=sequence_notes,
    encoding_notes=text_notes,
    reading=reading,
    folded=folded,
    reads=frozenset({"data.sequences"}),
)
