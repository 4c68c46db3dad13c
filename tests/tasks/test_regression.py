"""The unit of a regression, its loss and its splits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, make_batch
from torch.nn.functional import mse_loss
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_bidora.data.columns import Columns
from peft_bidora.data.examples import Examples
from peft_bidora.data.split import make_splits
from peft_bidora.data.table import Table
from peft_bidora.errors import DataError
from peft_bidora.tasks.regression import NUMBERS, REGRESSION, Regression, quantile_bins, reading
from peft_bidora.tasks.task import TaskOptions

TASK = Regression(10.0, 4.0)


def examples(labels: Sequence[float]) -> Examples:
    texts = [(f"text {index}",) for index in range(len(labels))]
    lines = list(range(1, len(labels) + 1))
    return Examples(texts, list(labels), None, [{}] * len(labels), "train.jsonl", lines, "line")


def batch(rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, rows, generator=generator, dtype=torch.float64)
    return draw[0, :, None], draw[1]


def test_target_is_standardised_by_mean_and_population_deviation_of_the_lower_split() -> None:
    task = REGRESSION.fit(TaskOptions(), examples([1.0, 2.0, 6.0, 900.0]), examples([1.0, 2.0, 6.0]))
    # (4 + 1 + 9) / 3 is the variance about 3.
    assert task.state() == pytest.approx({"mean": 3.0, "standard_deviation": (14 / 3) ** 0.5}, rel=1e-12)


def test_labels_are_encoded_in_standard_deviations_and_decoded_in_the_users_unit() -> None:
    def tokenizer(texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] for _ in texts]}

    columns = TASK.encode(examples([10.0, 18.0, 8.0]), tokenizer, 8)
    assert columns["labels"] == [0.0, 2.0, -0.5]
    assert TASK.decode(np.array(columns["labels"])[:, None]) == [10.0, 18.0, 8.0]


def test_model_says_that_it_is_a_regression(word_model: Path) -> None:
    model = TASK.load_model(str(word_model), AutoTokenizer.from_pretrained(word_model))
    # transformers' pipeline returns the logit of such a model, and a probability of another with one output.
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)


def test_loss_is_the_mean_squared_error_of_a_row() -> None:
    logits, labels = batch()
    torch.testing.assert_close(TASK.loss({"logits": logits}, labels), mse_loss(logits[:, 0], labels))


@pytest.mark.parametrize("cuts", [(4, 4, 4), (1, 9, 2), (11, 1)])
def test_losses_of_micro_batches_add_up_to_that_of_the_batch(cuts: tuple[int, ...]) -> None:
    logits, labels = batch()
    parts = zip(logits.split(cuts), labels.split(cuts), strict=True)
    total = sum(TASK.loss({"logits": part}, truth, len(labels)) for part, truth in parts)
    # Sums of 12 float64 terms in another order.
    torch.testing.assert_close(total, TASK.loss({"logits": logits}, labels), rtol=1e-12, atol=1e-12)


def test_loss_of_bfloat16_logits_is_taken_in_float32() -> None:
    logits, labels = batch()
    low = logits.bfloat16()
    assert torch.equal(TASK.loss({"logits": low}, labels.float()), TASK.loss({"logits": low.float()}, labels.float()))


@pytest.mark.parametrize("value", [0.1, 3.0])  # the deviation of three times 0.1 is 1e-17, not 0
def test_constant_target_is_refused(value: float) -> None:
    with pytest.raises(DataError, match=rf"target is {value:g} in all 3 rows of the lower split.*Check data\.label"):
        REGRESSION.fit(TaskOptions(), examples([value] * 3), examples([value] * 3))


@pytest.mark.parametrize("values", [[-1e300, 1e300], [-1e308, 1e308], [1e-200, 2e-200]])
def test_target_whose_variance_no_float_holds_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="Write it in another unit"):
        REGRESSION.fit(TaskOptions(), examples(values), examples(values))


def test_splits_keep_each_tenth_of_the_target_in_proportion_and_require_none() -> None:
    rows = examples(np.random.default_rng(0).exponential(size=203).tolist())
    bins = quantile_bins(rows)
    assert set(bins) == set("0123456789")
    splits = make_splits(rows, selection_fraction=0.1, upper_fraction=0.2, seed=0, strata=REGRESSION.strata(rows))
    for name, fraction in (("selection", 0.1), ("upper", 0.18)):
        counts = np.bincount([int(bins[row]) for row in getattr(splits, name)], minlength=10)
        assert (abs(counts - fraction * 20.3) <= 1.5).all(), name  # off by one, after another cut by one
    few = examples([1.0, 2.0, 3.0, 4.0])
    assert make_splits(few, selection_fraction=0.25, upper_fraction=0.3, seed=0, strata=quantile_bins(few)).upper


def test_equal_targets_are_in_one_bin() -> None:
    bins = quantile_bins(examples([5.0] * 30 + [1.0, 2.0]))
    assert len(set(bins[:30])) == 1
    assert bins[30] != bins[0]


def test_prediction_column_is_in_the_users_unit() -> None:
    assert TASK.prediction_columns(TASK.decode(np.array([[0.5], [-1.0]]))) == [
        {"predicted_value": 12.0},
        {"predicted_value": 6.0},
    ]


def test_reading_lines_give_the_users_unit_from_stock_logits() -> None:
    class Model:
        def __call__(self, **_: object) -> "Model":
            self.logits = torch.tensor([[0.5]])
            return self

    names = {"tokenizer": lambda texts, return_tensors: {}, "model": Model()}
    exec("\n".join(reading(TASK.state(), ("a",), None)), names)
    assert names["prediction"] == torch.tensor([12.0])


def test_column_of_the_target_is_guessed() -> None:
    from peft_bidora.data.columns import resolve_columns

    table = Table("a.csv", ("id", "text", "score"), [{"id": "1", "text": "x", "score": "2"}], [2], "line", None)
    assert resolve_columns(table, None, None, layout=NUMBERS)[0] == Columns(("text",), "score")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "vit"])
def test_last_layer_takes_over_the_unit_where_it_has_a_bias(family: str) -> None:
    config = FAMILIES[family][0]()
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(0.3)
    task, inputs = Regression(mean=100.0, standard_deviation=7.0), make_batch(family)
    with torch.no_grad():
        standardised = model(**inputs).logits
        state = REGRESSION.folded(task, model, None)
        found = model(**inputs).logits
    expected = state["mean"] + state["standard_deviation"] * found
    torch.testing.assert_close(expected, 100 + 7 * standardised)
    if family in ("gpt2", "llama", "qwen2", "mistral"):  # a layer without bias has nowhere to put the mean
        assert state == task.state()
    else:
        assert (state["mean"], state["standard_deviation"]) == (0.0, 1.0)
        assert model.config.problem_type == "regression"
