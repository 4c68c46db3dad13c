"""Recipes: numbers, overrides, paths, and files that are none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from peft_bidora.errors import RecipeError
from peft_bidora.recipe.load import dump_recipe, load_recipe


def test_numbers_that_yaml_takes_for_strings_are_numbers(make_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(make_recipe(), ["search.learning_rate=5e-3", "search.xi=1e-1"])
    assert (recipe.search.learning_rate, recipe.search.xi) == (5e-3, 0.1)


@pytest.mark.parametrize("key", ["search.steps", "seed"])
def test_booleans_are_no_counts(key: str, make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=f"{key}=True"):
        load_recipe(make_recipe(), [f"{key}=true"])


def test_overrides_win_over_the_file(make_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(make_recipe(), ["retrain.from=search", "seed=7"])
    assert (recipe.retrain.start, recipe.seed) == ("search", 7)


def test_dumped_recipe_loads_as_itself(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(make_recipe())
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


def test_data_beside_the_recipe_is_found_from_anywhere(
    make_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_recipe()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Path(load_recipe(path).data.train).resolve() == (tmp_path / "train.jsonl").resolve()


def test_all_faults_are_reported_at_once(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"search\.steps=0") as caught:
        load_recipe(make_recipe(), ["search.steps=0", "retrain.from=middle", "adapter.rnk=2", "precision=float16"])
    assert len(caught.value.faults) == 4
    assert "adapter.rnk: there is no such key. Did you mean 'adapter.rank'?" in caught.value.faults


def test_two_lengths_of_a_phase_are_refused(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="retrain: steps and epochs are both set"):
        load_recipe(make_recipe(), ["retrain.epochs=2"])


RECIPES = {
    "broken": (b"model: x\ndata: [1\nseed: 2\n", "line 3: broken YAML"),
    "repeated key": (b"seed: 1\nseed: 2\n", "line 2: .*'seed' stands twice"),
    "no mapping": (b"- model\n", "expected keys and values"),
    "not UTF-8": (b"model: caf\xe9\n", "UTF-8"),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_file_that_is_no_recipe_is_refused(kind: str, tmp_path: Path) -> None:
    content, message = RECIPES[kind]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)
