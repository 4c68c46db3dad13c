"""The recipe that `init` writes for a file."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from glue_folders import write_glue

from peft_bidora.data.source import read_table
from peft_bidora.errors import DataError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.suggest import recognise, suggest_recipe

CLASSES = {"text": "a", "label": "x"}
CASES: list[tuple[list[dict[str, Any]], str]] = [
    ([CLASSES], "sequence-classification"),
    ([{"text": "a", "label": number} for number in range(3)], "sequence-classification"),
    ([{"text": "a", "label": ["x", "y"]}], "sequence-classification"),
    ([{"text": "a", "label": True}], "sequence-classification"),
    ([{"text": "a", "score": 0.5}], "regression"),
    ([{"text": "a", "label": "2.5"}, {"text": "b", "label": "3"}], "regression"),
    ([{"text": "a", "label": number} for number in range(60)], "regression"),
    ([{"tokens": ["a"], "ner_tags": ["O"]}], "token-classification"),
    ([{"messages": []}], "text-generation"),
    ([{"prompt": "a", "completion": "b"}], "text-generation"),
    ([{"words": "some words", "label": "x"}], "sequence-classification"),
    ([{"meaning_representation": "a", "reference": "b"}], "text-generation"),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("rows", "task"), CASES)
def test_task_is_recognised(rows: list[dict[str, Any]], task: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows)
    assert recognise(read_table(path))[0] == task
    text, _ = suggest_recipe(str(path))
    assert yaml.safe_load(text)["task"] == task


def test_recipe_is_valid_and_cuts_test_rows(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(suggest_recipe(str(write(tmp_path / "odd: name.jsonl", [CLASSES])))[0])
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.data.test_fraction, recipe.data.label) == (0.2, "label")
    assert recipe.output.name == "odd: name"


def test_test_file_beside_the_train_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", [CLASSES])
    text, _ = suggest_recipe(str(write(tmp_path / "train.jsonl", [CLASSES])))
    assert yaml.safe_load(text)["data"]["test"] == str(tmp_path / "test.jsonl")


def test_validation_file_beside_the_train_file_chooses_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", [CLASSES])
    text, _ = suggest_recipe(str(write(tmp_path / "train.jsonl", [CLASSES])))
    data = yaml.safe_load(text)["data"]
    assert (data["selection"], data["test_fraction"]) == (str(tmp_path / "dev.jsonl"), 0.2)
    assert "selection" not in yaml.safe_load(suggest_recipe(str(tmp_path))[0])["data"]  # a folder is read whole


def test_validation_file_of_a_glue_task_stands_for_its_hidden_test_rows(tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "RTE")
    data = yaml.safe_load(suggest_recipe(str(folder / "train.tsv"))[0])["data"]
    assert data["test"] == str(folder / "dev.tsv")
    assert "selection" not in data


@pytest.mark.parametrize(("name", "output"), [("train.jsonl", "news"), ("Train.jsonl", "news"), ("a.jsonl", "a")])
def test_output_is_named_after_what_tells_data_apart(name: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "news").mkdir()
    text, _ = suggest_recipe(str(write(tmp_path / "news" / name, [CLASSES])))
    assert yaml.safe_load(text)["output"] == f"runs/{output}"


def test_proteins_are_recognised_by_their_letters(tmp_path: Path) -> None:
    text, _ = suggest_recipe(str(write(tmp_path / "rows.jsonl", [{"sequence": "ACDEFW", "label": 1}])))
    assert yaml.safe_load(text)["data"]["sequences"] == "protein"
    text, _ = suggest_recipe(str(write(tmp_path / "rows.jsonl", [{"sequence": "to be", "label": 1}])))
    assert "sequences" not in yaml.safe_load(text)["data"]


def test_file_that_tells_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the columns 'a', 'b'; expected a label, tokens, messages"):
        suggest_recipe(str(write(tmp_path / "rows.jsonl", [{"a": 1, "b": 2}])))


@pytest.mark.parametrize(("sequence", "expected"), [("MKVLACGT", "protein"), ("ACGTACGTNN", None)])
def test_sequences_of_nucleotides_are_no_proteins(sequence: str, expected: str | None, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"sequence": sequence, "label": "x"}])
    assert recognise(read_table(path))[1].get("sequences") == expected


def test_messages_get_a_model_with_a_chat_template(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    assert yaml.safe_load(suggest_recipe(str(path))[0])["model"].endswith("Instruct")


def test_one_slip_among_numbers_does_not_make_them_classes(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "label": str(number / 4)} for number in range(20)]
    rows[6]["label"] = "n/a"
    assert recognise(read_table(write(tmp_path / "rows.jsonl", rows)))[0] == "regression"
    few = [{"text": "a", "label": each} for each in ("0.5", "1.5", "n/a", "none")]
    assert recognise(read_table(write(tmp_path / "few.jsonl", few)))[0] == "sequence-classification"
