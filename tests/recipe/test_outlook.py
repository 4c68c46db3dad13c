"""What a run is said to take against what it takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.outlook import outlook, time_steps
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import make_trainer, run

Make = Callable[..., Path]


def three_classes(count: int, offset: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"a film number {i}", "label": f"class {i % 3}"} for i in range(offset, offset + count)]


@pytest.mark.parametrize("method", ["lora", "dora", "bidora", "full"])
def test_parameters_and_steps_are_those_of_the_run(method: str, make_recipe: Make) -> None:
    # 36 training rows in batches of 4, 29 of them in the lower level.
    epochs = {"search__steps": None, "search__epochs": 0.5, "retrain__steps": None, "retrain__epochs": 0.4}
    recipe = load_recipe(make_recipe(three_classes(40), three_classes(12, 100), **epochs))
    recipe = recipe.model_copy(update={"method": method})
    told = outlook(prepare(recipe))
    metrics = run(recipe)
    assert told["trainable_parameters"] == metrics["trainable_parameters"]
    assert told["parameters"] == metrics["parameters"]
    log = [json.loads(line) for line in (recipe.output / "metrics.jsonl").read_text().splitlines()]
    for phase in ("search", "retrain"):
        done = max((entry["step"] for entry in log if entry["phase"] == phase), default=None)
        assert told.get(f"{phase}_steps") == done


def test_all_linear_layers_are_counted(make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(adapter__target_modules="all-linear"))
    assert outlook(prepare(recipe))["trainable_parameters"] == run(recipe)["trainable_parameters"]


@pytest.mark.parametrize(
    ("hypergradient", "passes"),
    [("auto", 8), ("finite-difference", 10), ("one-sided", 8), ("exact", 8), ("first-order", 6), ("pbgd-free", 6)],
)
def test_passes_follow_the_estimator(hypergradient: str, passes: int, make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(search__hypergradient=hypergradient, retrain__steps=1))
    told = outlook(prepare(recipe))
    # 4 lower steps, 2 upper ones, 1 retrain step.
    assert told["passes"] == passes + 1
    assert told["passes_per_search_step"] == passes / 4


def test_rows_that_are_cut_are_counted(make_recipe: Make) -> None:
    told = outlook(prepare(load_recipe(make_recipe(data__max_length=5))))["tokens"]
    # [CLS], four words and [SEP]: every row has 6 tokens.
    assert told == {"median": 6, "percentile_95": 6, "longest": 6, "longest_read": 5, "truncated_rows": 52}


@pytest.mark.parametrize("method", ["lora", "bidora"])
def test_timing_leaves_the_output_alone(method: str, make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(method=method))
    assert time_steps(prepare(recipe), make_trainer) > 0
    assert not recipe.output.exists()


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        ("token-classification", {"tokens": ["a", "b"], "tags": ["O", "B-x"]}, {"O": 20, "B-x": 20}),
        ("sequence-classification", {"text": "a", "labels": ["x", "y"]}, {"x": 20, "y": 20}),
    ],
)
def test_tags_and_labels_of_lists_are_counted(
    task: str, rows: dict[str, Any], expected: dict[str, int], make_recipe: Make
) -> None:
    def some(count: int, offset: int) -> list[dict[str, Any]]:
        key = next(iter(rows))
        texts = [[f"a{i}", "b"] if key == "tokens" else f"a{i} b" for i in range(offset, offset + count)]
        return [{**rows, key: text} for text in texts]

    path = make_recipe(some(60, 0), some(20, 60), task=task, data__text=None, data__label=None)
    assert outlook(prepare(load_recipe(path)))["classes"]["test"] == expected


def test_memory_falls_by_what_is_packed_and_computed_again(make_recipe: Make) -> None:
    def told(**changes: Any) -> int:
        return int(outlook(prepare(load_recipe(make_recipe(**changes))))["memory_bytes"])

    whole = told()
    # 2 layers of 4 · 16² + 2 · 16 · 24 numbers, and the pooler's 16²; 1/2 byte and a scale of 4 bytes for 64 of them.
    linear = 2 * (4 * 256 + 2 * 384) + 256
    assert whole - told(quantization="8bit") == 3 * linear
    assert whole - told(quantization="4bit") == linear * (4 - 0.5625)
    # 4 rows; a layer keeps 34 · 16 + 5 · 2 · tokens numbers of two bytes, twice that in float32.
    tokens = outlook(prepare(load_recipe(make_recipe())))["tokens"]["longest_read"]
    of_layer = 4 * tokens * 2 * (34 * 16 + 5 * 2 * tokens)
    assert whole - told(activation_checkpointing=True) == of_layer - 4 * tokens * 2 * 16 * 4
