"""What every task keeps to; a new task, or a new form of its rows, adds a `Case`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import set_seed

from peft_bidora.data.columns import columns_of_other
from peft_bidora.data.examples import read_examples
from peft_bidora.data.source import read_table
from peft_bidora.recipe.finished import evaluate
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.options import task_options
from peft_bidora.recipe.prepare import Prepared, prepare
from peft_bidora.recipe.run import make_trainer, run
from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.tasks.registry import TASKS
from peft_bidora.training.prediction import predict

Row = dict[str, Any]
METHODS = ("lora", "dora", "bidora", "full")
GOOD, BAD = ("good", "fine", "great"), ("bad", "poor", "awful")


@dataclass(frozen=True)
class Case:
    """How a task is tried.

    Args:
        task: of the registry.
        model: the fixture that returns the folder of a tiny model and its tokenizer.
        row: makes the labelled row of a number; different numbers give different texts, of different lengths.
        recipe: what else the recipe says.
        label: the columns that unlabelled rows lack.
        quick: the methods that it is trained by in each run of the tests, the others being slow.
        tolerance: relative, of float64 weights after steps on parts of a batch; more where a loss is in float32.
    """

    task: str
    model: str
    row: Callable[[int], Row]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    label: tuple[str, ...] = ("label",)
    quick: tuple[str, ...] = METHODS
    tolerance: float = 1e-7


def text(number: int) -> str:
    words = GOOD if number % 2 else BAD
    return " ".join(["very"] * (number % 4) + [words[number % 3], f"film {number}"])


def peptide(number: int) -> str:
    return ("MKV" if number % 2 else "GWE") + "".join(
        "ACDEFGHIKL"[int(digit)] for digit in f"{number}" * (number % 3 + 1)
    )


def labelled(label: Callable[[int], Any]) -> Callable[[int], Row]:
    return lambda number: {"text": text(number), "label": label(number)}


def labels_of(number: int) -> list[str]:
    return [name for name, has in (("good", number % 2), ("long", number % 4 > 1)) if has]


CLASSES = labelled(lambda number: "good" if number % 2 else "bad")
NUMBER = labelled(lambda number: 20.0 + 8 * (number % 2) + number % 4)
CASES = {
    "classes": Case("sequence-classification", "word_model", CLASSES),
    "class weights": Case(
        "sequence-classification",
        "word_model",
        CLASSES,
        {"classification": {"class_weights": {"good": 3.0}}},
        quick=("bidora",),
    ),
    "pairs": Case(
        "sequence-classification",
        "word_model",
        lambda number: {"sentence1": text(number), "sentence2": text(number // 2), "label": number % 2},
        quick=(),
    ),
    "lists of labels": Case("sequence-classification", "word_model", labelled(labels_of)),
    "numbers": Case("regression", "word_model", NUMBER),
    "classes of proteins": Case(
        "sequence-classification",
        "esm_model",
        lambda number: {"sequence": peptide(number), "label": number % 2},
        quick=(),
    ),
    "numbers of proteins": Case(
        "regression",
        "esm_model",
        lambda number: {"sequence": peptide(number), "label": f"{number % 2 + number % 3}.5"},
        quick=("bidora",),
    ),
    "tags": Case(
        "token-classification",
        "word_model",
        lambda number: {
            "tokens": text(number).split(),
            "tags": ["B-PLACE" if word in (*GOOD, *BAD) else "O" for word in text(number).split()],
        },
        label=("tags",),
    ),
    "completions": Case(
        "text-generation",
        "language_model",
        lambda number: {"prompt": text(number), "completion": "good" if number % 2 else "bad day"},
        {"generation": {"max_new_tokens": 3}},
        label=("completion",),
    ),
}


def trainings(methods: Sequence[str]) -> list[Any]:
    """Pair each case with each method."""
    return [
        pytest.param(name, method, marks=() if method in case.quick else pytest.mark.slow)
        for name, case in CASES.items()
        for method in methods
    ]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def prepared(case: Case, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Prepared]:
    """Write 30 train rows, of which 16 are lower and 8 upper, and 10 test rows; prepare the recipe of a few steps."""
    model = request.getfixturevalue(case.model)
    for name, numbers in (("train", range(30)), ("test", range(100, 110))):
        lines = [json.dumps(case.row(number)) + "\n" for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = {
        "model": str(model),
        "task": case.task,
        "data": {"train": "train.jsonl", "test": "test.jsonl", "selection_fraction": 0.2, "upper_fraction": 1 / 3},
        "adapter": {"rank": 2, "alpha": 4},
        "search": {"steps": 2, "batch_size": 8, "lower_steps": 1},
        "retrain": {"steps": 2, "batch_size": 8},
        "eval_steps": 2,
        "save_steps": 2,
        "output": str(tmp_path / "run"),
        **case.recipe,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return lambda *overrides: prepare(load_recipe(tmp_path / "recipe.yaml", overrides))


def predictions_of(prepared: Prepared, examples: Any, batch_size: int = 64) -> list[Any]:
    """Predict by the untrained model."""
    set_seed(0)
    model = prepared.rows.task.load_model(prepared.source, prepared.tokenizer)
    options = {"max_length": prepared.max_length, "batch_size": batch_size}
    return predict(model, prepared.rows.task, prepared.tokenizer, examples, **options)


def assert_same(left: Any, right: Any) -> None:
    """Compare predictions or their columns; padding changes the order of float32 sums."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert_same(value, right[name])
    elif isinstance(left, list | tuple) and not all(isinstance(value, int | float) for value in left):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, str | None):
        assert left == right
    else:
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_every_task_of_the_registry_has_a_case() -> None:
    assert {case.task for case in CASES.values()} == set(TASKS)


def test_state_round_trips_through_json(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    state = made.rows.task.state()
    restored = made.kind.restore(json.loads(json.dumps(state)))
    assert restored == made.rows.task
    assert restored.state() == state


def test_encoding_and_prediction_keep_the_order_of_the_rows(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    rows, task = made.rows.parts["test"], made.rows.task
    backwards = rows.take(reversed(range(len(rows))))
    there, back = (task.encode(part, made.tokenizer, made.max_length) for part in (rows, backwards))
    assert {name: list(values) for name, values in there.items()} == {n: list(v)[::-1] for n, v in back.items()}
    found = predictions_of(made, rows)
    assert len(found) == len(rows)
    assert len({str(prediction) for prediction in found}) > 1
    again = predictions_of(made, backwards, batch_size=3)[::-1]
    assert_same(task.prediction_columns(again), task.prediction_columns(found))


def test_unlabelled_rows_are_predicted_as_labelled_ones(
    case: Case, prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    made = prepared()
    rows = [{k: v for k, v in case.row(number).items() if k not in case.label} for number in range(100, 110)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    layout = made.kind.layout(task_options(made.recipe), made.tokenizer)
    table = made.kind.arrange(read_table(tmp_path / "new.jsonl"))
    columns = made.rows.columns
    if columns.label not in table.columns:
        columns = type(columns)(columns.text, None)
    new = read_examples(table, columns_of_other(table, columns, layout), layout, require_labels=False)
    assert new.labels is None
    columns_of = made.rows.task.prediction_columns
    columns_added = columns_of(predictions_of(made, new))
    assert_same(columns_added, columns_of(predictions_of(made, made.rows.parts["test"])))
    assert len(columns_added) == len(rows)
    json.dumps(columns_added, allow_nan=False)


def test_every_metric_is_scored_and_resampled(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    task, rows = made.rows.task, made.rows.parts["test"]
    found, labels = predictions_of(made, rows), rows.required_labels()
    assert set(task.scores(found, labels)) == set(task.metrics)
    assert set(task.lower_is_better) <= set(task.metrics)
    drawn = task.resampled_scores(found, labels, np.random.default_rng(0), 50)
    assert {name: values.shape for name, values in drawn.items()} == dict.fromkeys(task.metrics, (50,))
    assert all(np.isfinite(values).all() for values in drawn.values())
    for score in scores_with_intervals(task, found, labels, 0).values():
        assert score["low"] <= score["value"] <= score["high"]
    json.dumps(task.details(found, labels), allow_nan=False)


@pytest.mark.parametrize(("case", "method"), trainings(("lora", "bidora")), indirect=["case"])
def test_accumulated_quarter_batches_equal_the_whole_batch(
    method: str, case: Case, prepared: Callable[..., Prepared], tmp_path: Path
) -> None:
    weights = []
    for size, accumulation in ((8, 1), (2, 4)):
        phases = [
            f"{phase}.{key}={value}"
            for phase in ("search", "retrain")
            for key, value in (("batch_size", size), ("gradient_accumulation_steps", accumulation))
        ]
        made = prepared(f"method={method}", f"output={tmp_path}/run-{size}", "select_best=false", *phases)
        trainer = make_trainer(made)
        trainer.model.double()
        # The steps are then smooth in the gradients: those of Adam turn rounding into a sign.
        trainer.args.optim, trainer.args.adam_epsilon = "sgd", 1e-3
        trainer.train()
        weights.append({name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=case.tolerance, atol=case.tolerance / 100)


@pytest.mark.parametrize(("case", "method"), trainings(METHODS), indirect=["case"])
def test_run_is_read_by_stock_libraries_with_the_same_predictions(
    method: str, prepared: Callable[..., Prepared]
) -> None:
    made = prepared(f"method={method}")
    metrics = run(made.recipe)
    task, rows = made.rows.task, made.rows.parts["test"]
    assert set(metrics["test"]) == set(task.metrics)
    lines = (made.recipe.output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    for name, score in evaluate(made.recipe.output).scores.items():
        # Weights that are mapped from a file may be summed in another order, which a correlation can enlarge.
        assert score == pytest.approx(metrics["test"][name], rel=1e-4, abs=1e-5)
    stock: dict[str, Any] = {}
    exec("\n".join(metrics["loading_lines"]), stock)
    found = predict(stock["model"], task, stock["tokenizer"], rows, max_length=made.max_length)
    expected = [{**row, **added} for row, added in zip(rows.rows, task.prediction_columns(found), strict=True)]
    assert_same([json.loads(line) for line in lines], expected)
