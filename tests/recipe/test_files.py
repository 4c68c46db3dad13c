"""What a data source gives beside the files that a recipe names."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from glue_folders import write_glue

from peft_bidora.data.glue_tasks import GLUE, GlueTask
from peft_bidora.errors import BiDoRAError, RecipeError
from peft_bidora.recipe.files import data_files, with_glue_defaults
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare, read_rows
from peft_bidora.recipe.schema import Recipe
from peft_bidora.recipe.suggest import suggest_recipe
from peft_bidora.tasks import registry
from peft_bidora.tasks.sequence_classification import SEQUENCE_CLASSIFICATION

METRICS = {"CoLA": "matthews", "MRPC": "f1_of_equivalent", "QQP": "f1_of_duplicate", "STS-B": "pearson"}
MakeRecipe = Callable[..., Path]


def glue_recipe(make: MakeRecipe, train: str | Path, *overrides: str) -> Recipe:
    named = ["data.test=null", "data.text=null", "data.label=null", f"data.train={train}"]
    return load_recipe(make(), [*named, *overrides])


@pytest.mark.parametrize("task", GLUE, ids=lambda task: task.folder)
def test_folder_of_glue_settles_columns_and_metric(task: GlueTask, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, task.folder)
    settled, notes = with_glue_defaults(glue_recipe(make_recipe, folder, f"task={task.task}"))
    assert settled.data.text == list(task.text)
    assert settled.data.label == "label"
    assert settled.select_by == METRICS.get(task.folder, "accuracy")
    assert notes == [f"select_by is not set: using {settled.select_by}, for {task.folder} of GLUE"]


@pytest.mark.parametrize("task", GLUE, ids=lambda task: task.folder)
def test_metric_of_each_task_is_one_that_there_is(task: GlueTask, tmp_path: Path) -> None:
    if task.task in registry.TASKS:
        state = {"label_names": list(task.classes)} if task.classes else {"mean": 0.0, "standard_deviation": 1.0}
        assert task.metric in registry.TASKS[task.task].restore(state).metrics


def test_what_the_recipe_says_stands(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "RTE")
    recipe = glue_recipe(make_recipe, folder, "data.text=sentence2", "select_by=f1_macro")
    settled, notes = with_glue_defaults(recipe)
    assert (settled.data.text, settled.select_by, notes) == (["sentence2"], "f1_macro", [])


def test_other_data_settle_nothing(make_recipe: MakeRecipe) -> None:
    recipe = load_recipe(make_recipe())
    assert with_glue_defaults(recipe) == (recipe, [])


@pytest.mark.parametrize(("name", "wrong"), [("STS-B", "sequence-classification"), ("RTE", "regression")])
def test_task_that_is_not_the_datas_is_refused_with_the_right_one(
    name: str, wrong: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.TASKS, "regression", replace(SEQUENCE_CLASSIFICATION, name="regression"))
    folder = write_glue(tmp_path, name)
    right = {"sequence-classification": "regression", "regression": "sequence-classification"}[wrong]
    with pytest.raises(RecipeError, match=rf"task={wrong}: .* is {name} of GLUE, which needs task={right}\. Set it"):
        with_glue_defaults(glue_recipe(make_recipe, folder, f"task={wrong}"))
    with pytest.raises(BiDoRAError) as caught:
        prepare(glue_recipe(make_recipe, folder, f"task={wrong}"))
    assert len(caught.value.faults) == 1


def test_validation_serves_as_test_and_selection_is_cut_from_train(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "CoLA")
    prepared = prepare(glue_recipe(make_recipe, folder))
    sizes = {name: len(part) for name, part in prepared.rows.parts.items()}
    assert sizes == {"lower": 29, "upper": 7, "selection": 4, "test": 6}
    assert prepared.rows.parts["test"].source == str(folder / "dev.tsv")
    assert prepared.recipe.select_by == "matthews"
    assert prepared.rows.notes[:2] == [
        "select_by is not set: using matthews, for CoLA of GLUE",
        f"The test labels of CoLA are not public: {folder / 'dev.tsv'} serves as the test rows.",
    ]


def test_public_test_labels_leave_validation_to_the_selection(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "MRPC")
    rows = read_rows(with_glue_defaults(glue_recipe(make_recipe, folder))[0], SEQUENCE_CLASSIFICATION)
    assert {name: len(part) for name, part in rows.parts.items()} == {
        "lower": 32, "upper": 8, "selection": 6, "test": 5,
    }  # fmt: skip
    assert rows.notes == [
        f"data.test is not set: using {folder / 'msr_paraphrase_test.txt'}",
        f"data.selection is not set: using {folder / 'dev.tsv'}",
    ]


@pytest.mark.parametrize("own", ["data.test_fraction=0.2", "data.test=mine.tsv"])
def test_validation_rows_are_for_the_selection_where_test_rows_are_given(
    own: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = write_glue(tmp_path, "RTE")
    files, notes = data_files(glue_recipe(make_recipe, folder, own))
    assert files.pop("test", ("mine.tsv", "test")) == ("mine.tsv", "test")
    parts = {"train": (str(folder / "train.tsv"), "train"), "selection": (str(folder / "dev.tsv"), "validation")}
    assert (files, notes) == (parts, [f"data.selection is not set: using {folder / 'dev.tsv'}"])


def test_test_rows_are_not_the_selection_rows_too(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "RTE")
    files, _ = data_files(glue_recipe(make_recipe, folder, f"data.test={folder / 'dev.tsv'}"))
    assert files.keys() == {"train", "test"}
    files, _ = data_files(glue_recipe(make_recipe, "glue/rte", "data.test=glue/rte"))
    assert files.keys() == {"train", "test"}


def test_folder_named_as_test_gives_its_labelled_rows(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "RTE")
    files, notes = data_files(glue_recipe(make_recipe, folder / "train.tsv", f"data.test={folder}"))
    assert files["test"] == (str(folder / "dev.tsv"), "validation")
    assert len(notes) == 1


def test_hub_name_gives_its_splits(make_recipe: MakeRecipe) -> None:
    files, notes = data_files(glue_recipe(make_recipe, "glue/rte"))
    assert files == {"train": ("glue/rte", "train"), "test": ("glue/rte", "validation")}
    assert notes == ["The test labels of RTE are not public: the validation split of glue/rte serves as the test rows."]
    files, notes = data_files(glue_recipe(make_recipe, "nyu-mll/glue:mrpc"))
    assert files == {
        key: ("nyu-mll/glue:mrpc", split)
        for key, split in (("train", "train"), ("test", "test"), ("selection", "validation"))
    }
    assert notes == [
        "data.test is not set: using the test split of nyu-mll/glue:mrpc",
        "data.selection is not set: using the validation split of nyu-mll/glue:mrpc",
    ]


def test_saved_dictionary_gives_its_splits(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": "pos" if i % 2 else "neg"} for i in range(40)]
    parts = {"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:6]), "other": Dataset.from_list(rows)}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    recipe = load_recipe(make_recipe(), ["data.test=null", f"data.train={saved}"])
    assert data_files(recipe) == (
        {"train": (saved, "train"), "test": (saved, "test")},
        [f"data.test is not set: using the test split of {saved}"],
    )
    assert len(read_rows(recipe, SEQUENCE_CLASSIFICATION).parts["test"]) == 6
    assert "test_fraction" not in suggest_recipe(saved)[0]
    parts["train"].save_to_disk(tmp_path / "single")
    single = load_recipe(make_recipe(), ["data.test=null", f"data.train={tmp_path / 'single'}"])
    assert data_files(single) == ({"train": (str(tmp_path / "single"), "train")}, [])


def test_folds_leave_the_test_split_that_lies_beside_alone(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": "pos" if i % 2 else "neg"} for i in range(40)]
    parts = {"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:6])}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    recipe = load_recipe(make_recipe(), ["data.test=null", f"data.train={saved}", "data.folds=4", "data.fold=3"])
    assert data_files(recipe) == ({"train": (saved, "train")}, [])
    assert len(read_rows(recipe, SEQUENCE_CLASSIFICATION).parts["test"]) == 10
