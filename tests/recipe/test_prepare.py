"""The four splits that a recipe's files give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_bidora.errors import BiDoRAError, DataError, ModelError, RecipeError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare, read_rows
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
    with pytest.raises(RecipeError, match=r"are both set.*or set data\.selection_fraction=0"):
        load_recipe(make_recipe(data__selection="test.jsonl", data__selection_fraction=0.1))


def test_metric_that_the_task_does_not_have_is_refused(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="select_by=bleu: expected a metric of sequence-classification: accuracy"):
        read_rows(load_recipe(make_recipe(select_by="bleu")), SEQUENCE_CLASSIFICATION)


def rows_of(count: int, texts: int, groups: int) -> list[dict[str, Any]]:
    return [
        {"text": f"film {i % texts}", "label": ("neg", "pos")[i % texts % 2], "group": f"g{i % groups}"}
        for i in range(count)
    ]


def test_selection_file_that_is_the_test_file_is_noted(make_recipe: Callable[..., Path]) -> None:
    path = make_recipe(data__selection="test.jsonl")
    notes = read_rows(load_recipe(path), SEQUENCE_CLASSIFICATION).notes
    assert notes == [
        "12 of 12 test rows also stand among the selection rows: the checkpoint is chosen on rows that are scored."
    ]


def test_every_overlap_of_given_files_is_noted(make_recipe: Callable[..., Path]) -> None:
    path = make_recipe(data__selection="train.jsonl", data__test="train.jsonl")
    notes = read_rows(load_recipe(path), SEQUENCE_CLASSIFICATION).notes
    assert [note.split(":")[0] for note in notes] == [
        "40 of 40 selection rows also stand among the training rows",
        "40 of 40 test rows also stand among the training rows",
        "40 of 40 test rows also stand among the selection rows",
    ]


def test_repeats_that_groups_tear_apart_are_noted_as_such(make_recipe: Callable[..., Path]) -> None:
    path = make_recipe(rows_of(60, 30, 20), data__group="group")
    rows = read_rows(load_recipe(path), SEQUENCE_CLASSIFICATION)
    assert "in other groups these may be in other splits" in rows.notes[0]
    assert any("upper rows also stand among the lower rows" in note for note in rows.notes)
    # Without groups the same rows are kept together.
    rows = read_rows(load_recipe(make_recipe(rows_of(60, 30, 20))), SEQUENCE_CLASSIFICATION)
    assert [note for note in rows.notes if "repeat" in note or "stand" in note] == [
        f"30 rows of {rows.parts['lower'].source} have the text of another one; these stay in one split."
    ]


def test_texts_that_are_cut_are_noted(make_recipe: Callable[..., Path]) -> None:
    notes = prepare(load_recipe(make_recipe(data__max_length=5))).rows.notes
    counts = {"lower": 29, "upper": 7, "selection": 4, "test": 12}
    assert notes == [
        f"{name} split: {count} rows have a text that is cut to fit into data.max_length=5."
        for name, count in counts.items()
    ]
    assert prepare(load_recipe(make_recipe(data__max_length=6))).rows.notes == []


def test_faults_of_all_files_model_and_keys_are_told_at_once(
    make_recipe: Callable[..., Path], tmp_path: Path, model_folder: Path
) -> None:
    path = make_recipe(
        train=[{"text": "", "label": "pos"}], test=[{"text": "film"}], data__selection="gone.jsonl",
        search__lower_steps=9, report_to=["tensorbord"], data__upper_fraction=0, data__max_length=99,
        adapter__target_modules=["querry"],
    )  # fmt: skip
    with pytest.raises(BiDoRAError) as caught:
        prepare(load_recipe(path))
    told = "\n".join(caught.value.faults)
    for words in (
        "train.jsonl: 1 row has an empty text", "test.jsonl has no column 'label'", "gone.jsonl does not exist",
        "lower_steps=9", "report_to=tensorbord", "There are no upper rows", "data.max_length=99", "'querry'",
    ):  # fmt: skip
        assert words in told
    assert len(caught.value.faults) == 8


def test_faults_of_the_test_file_are_told_beside_a_train_file_that_is_gone(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_recipe(test=[{"text": "", "label": "pos"}])
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError) as caught:
        read_rows(load_recipe(path), SEQUENCE_CLASSIFICATION)
    assert [Path(fault.split(" ")[0].strip(":")).name for fault in caught.value.faults] == ["train.jsonl", "test.jsonl"]
    with pytest.raises(DataError) as caught:
        read_rows(load_recipe(path, ["data.label=null"]), SEQUENCE_CLASSIFICATION)
    assert len(caught.value.faults) == 1


def test_one_row_that_repeats_is_told_in_the_singular(make_recipe: Callable[..., Path]) -> None:
    values = rows_of(30, 29, 30)
    notes = read_rows(load_recipe(make_recipe(values)), SEQUENCE_CLASSIFICATION).notes
    assert any(note.startswith("1 row of") and "has the text of another one" in note for note in notes)


def test_hub_that_gives_no_configuration_is_not_asked_for_the_tokenizer(
    make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(source: str) -> Any:
        raise ModelError(f"{source} cannot be fetched.")

    monkeypatch.setattr("peft_bidora.recipe.prepare.load_config", offline)
    monkeypatch.setattr("peft_bidora.recipe.prepare.load_tokenizer", offline)
    with pytest.raises(ModelError) as caught:
        prepare(load_recipe(make_recipe(model="owner/name")))
    assert caught.value.faults == ("owner/name cannot be fetched.",)
