"""Reading a recipe: each fault names its place."""

import json
from pathlib import Path

import pytest
from transformers import set_seed

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
        ("", r"holds nothing; expected keys and values"),
        ("model: m\noutput: run\n", r"^data is missing"),
        (TEXT + "search: {upper_batch_size: 0}\n", r"^search\.upper_batch_size=0: input should be greater than"),
        (TEXT + "search: {finite_difference_radius: 0.0}\n", r"finite_difference_radius=0\.0: input should be greater"),
        (TEXT + "search: {warmup_fraction: 10}\n", r"^search\.warmup_fraction=10: input should be less than 1"),
        (TEXT + "? [a]\n: 1\n", r"line 4: broken YAML: a key is a list or a mapping"),
        (TEXT + "? {a: b}\n: 1\n", r"line 4: broken YAML: a key is a list or a mapping"),
        (TEXT + "search: {<<: 3}\n", r"line 4: broken YAML: expected a mapping"),
        (TEXT + "search: &s {steps: 1, steps: 2}\nretrain: {<<: *s}\n", r"line 4: .*'steps' stands twice"),
        (TEXT + "seed: 2020-13-45\n", r"broken YAML: month must be in 1\.\.12"),
        ("[" * 5000, r"broken YAML: maximum recursion"),
        (TEXT + "seed: 4294967295\n", r"^seed=4294967295: input should be less than 4294967295"),
        (TEXT.replace("rows.jsonl", "r" * 5000), r"^data\.train: expected a path .* \(File name too long\)"),
        (TEXT.replace("model: m", "model: " + "m" * 300), r"^model: expected a path .* \(File name too long\)"),
        (TEXT.replace("run", "r" * 300), r"^output: expected a path .* \(File name too long\)\.$"),
        (TEXT.replace("run", r'"r\0n"'), r"^output: expected a path .* \(embedded null byte\)"),
        (TEXT.replace("}", ", folds: 3}"), r"^data: folds and fold go together"),
        (TEXT.replace("}", ", test_seed: 3}"), r"^data: test_seed draws the rows of test_fraction, which is 0"),
        (TEXT.replace("}", ", folds: 3, fold: 3}"), r"^data: fold=3 of folds=3: expected one from 0 to 2"),
        (
            TEXT.replace("}", ", folds: 3, fold: 0, test_fraction: 0.1}"),
            r"^data: folds takes the test rows from the train",
        ),
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


def test_merge_key_brings_what_is_not_given(tmp_path: Path) -> None:
    text = "search: &s {steps: 7, batch_size: 3}\nretrain: &r {<<: *s, batch_size: 5}\n" + TEXT
    recipe = load_recipe(write(tmp_path, text))
    assert (recipe.retrain.steps, recipe.retrain.batch_size) == (7, 5)
    with pytest.raises(RecipeError) as caught:  # the keys are merged on, and none is said to stand twice
        load_recipe(write(tmp_path, text + "adapter: {<<: *r}\n"))
    assert {fault.split(":")[0] for fault in caught.value.faults} == {"adapter.steps", "adapter.batch_size"}


def test_tilde_of_the_output_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe(write(tmp_path, TEXT), ["output=~/runs/a"]).output == tmp_path / "runs" / "a"


def test_largest_seed_leaves_one_for_the_retrain_phase(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, TEXT), [f"seed={2**32 - 2}"])
    set_seed(recipe.seed + 1)


def test_model_folder_is_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "models/tiny").mkdir(parents=True)
    path = tmp_path / "recipe.yaml"
    path.write_text("model: models/tiny\ndata: {train: a.csv}\noutput: run\n")
    assert load_recipe(path).model == str(tmp_path / "models/tiny")
    assert load_recipe(path, ["model=owner/name"]).model == "owner/name"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("serach.steps", "Did you mean the section 'search'?"),
        ("search.step", "Did you mean 'search.steps'?"),
        ("rank", "Did you mean 'adapter.rank'?"),
        ("batch_size", "Did you mean 'search.batch_size' or 'retrain.batch_size'?"),
        ("learning_rate", "Did you mean 'search.learning_rate' or 'retrain.learning_rate'?"),
        ("search.learning_rat", "Did you mean 'search.learning_rate'?"),
        ("zzz", "There are model, task, method, data, adapter,"),
    ],
)
def test_key_that_there_is_not_gets_the_one_that_was_meant(key: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: builtin:minilm\ndata: {train: a.csv}\noutput: out\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml", [f"{key}=5"])
    (fault,) = caught.value.faults
    assert hint in fault
    assert len(fault) < 350
