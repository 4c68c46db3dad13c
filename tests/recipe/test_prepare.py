"""The four splits that a recipe's files give."""

from collections.abc import Callable
from pathlib import Path

import pytest

from peft_bidora.errors import DataError, RecipeError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import read_rows
from peft_bidora.tasks.sequence_classification import SEQUENCE_CLASSIFICATION


@pytest.mark.parametrize("key", ["data.upper_fraction", "data.selection_fraction"])
def test_split_that_the_method_needs_is_asked_for(key: str, make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=f"Set {key}"):
        read_rows(load_recipe(make_recipe(), [f"{key}=0"]), SEQUENCE_CLASSIFICATION)


def test_splits_are_the_same_for_every_method(make_recipe: Callable[..., Path]) -> None:
    path = make_recipe()
    hashes = [
        read_rows(load_recipe(path, [f"method={m}"]), SEQUENCE_CLASSIFICATION).split_hashes()
        for m in ("lora", "dora", "bidora", "full")
    ]
    assert all(each == hashes[0] for each in hashes)


def test_folder_gives_the_files_that_are_not_named(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = make_recipe(data__train=".", data__test=None)
    (tmp_path / "validation.jsonl").write_text('{"text": "good", "label": "pos"}\n')
    rows = read_rows(load_recipe(path), SEQUENCE_CLASSIFICATION)
    sizes = {name: len(part) for name, part in rows.parts.items()}
    assert sizes == {"lower": 32, "upper": 8, "selection": 1, "test": 12}
    assert [note.split(":")[0] for note in rows.notes] == ["data.test is not set", "data.selection is not set"]


def test_fraction_that_is_set_stands_before_a_file_of_the_folder(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_recipe(data__train=".", data__test=None, data__selection_fraction=0.25)
    (tmp_path / "validation.jsonl").write_text('{"text": "good", "label": "pos"}\n')
    assert len(read_rows(load_recipe(path), SEQUENCE_CLASSIFICATION).parts["selection"]) == 10


def test_selection_file_and_fraction_together_are_refused(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="selection and selection_fraction are both set"):
        load_recipe(make_recipe(data__selection="test.jsonl", data__selection_fraction=0.1))


def test_metric_that_the_task_does_not_have_is_refused(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="select_by=bleu: expected a metric of sequence-classification: accuracy"):
        read_rows(load_recipe(make_recipe(select_by="bleu")), SEQUENCE_CLASSIFICATION)
