"""Reading a recipe: each fault names its place."""

import json
from pathlib import Path

import pytest

from peft_bidora.errors import RecipeError
from peft_bidora.recipe.load import dump_recipe, load_recipe

TEXT = "model: m\ndata: {train: rows.jsonl}\noutput: run\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT + "seed: 1\nseed: 2\n", r"recipe\.yaml, line 5: .*'seed' stands twice"),
        (TEXT + "search: {steps: 1, steps: 2}\n", r"line 4: .*'steps' stands twice"),
        (TEXT + "search: [1\n", r"recipe\.yaml, line \d: broken YAML"),
        ("- model\n", r"holds list; expected keys and values"),
        ("", r"holds NoneType; expected keys and values"),
        ("model: m\noutput: run\n", r"^data is missing"),
    ],
)
def test_broken_recipe_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))


def test_override_without_equals_sign_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'seed': expected key=value"):
        load_recipe(write(tmp_path, TEXT), ["seed"])


@pytest.mark.parametrize("number", ["5e-3", "5.0e-3", "0.005"])
def test_number_with_exponent_is_a_number(number: str, tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, TEXT + f"search: {{steps: 1, learning_rate: {number}}}\n"))
    assert recipe.search.learning_rate == 0.005
    assert load_recipe(write(tmp_path, TEXT), [f"retrain.learning_rate={number}"]).retrain.learning_rate == 0.005


def test_data_path_beside_the_recipe_comes_first(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, TEXT)).data.train == "rows.jsonl"
    (tmp_path / "rows.jsonl").write_text(json.dumps({}))
    assert load_recipe(write(tmp_path, TEXT)).data.train == str(tmp_path / "rows.jsonl")


def test_dumped_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, TEXT), ["retrain.from=search", "data.text=body"])
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
    plain = load_recipe(write(tmp_path, TEXT))
    assert load_recipe(write(tmp_path, dump_recipe(plain))) == plain
