"""A finished run is scored on the rows that it was tested on, and damage in its folder is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from peft_bidora.data.source import read_table
from peft_bidora.errors import BiDoRAError, CheckpointError
from peft_bidora.recipe import folder
from peft_bidora.recipe import merge as merge_module
from peft_bidora.recipe.finished import evaluate, read_run
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.merge import merge
from peft_bidora.recipe.predict import predict_file
from peft_bidora.recipe.run import run

Make = Callable[..., Path]


@pytest.fixture
def finished(make_recipe: Make) -> Path:
    """A run of two steps; its data lie beside it."""
    recipe = load_recipe(make_recipe(method="lora", retrain__steps=2))
    run(recipe)
    return recipe.output


@pytest.mark.parametrize(
    ("name", "label", "words"),
    [
        ("test.jsonl", "pos", ["data.test: the file", "The test split has other rows"]),
        ("train.jsonl", "new", ["data.train: the file", "The lower split has other rows"]),
        ("test.jsonl", "strange", ["'strange'"]),
    ],
)
def test_changed_file_is_refused(name: str, label: str, words: list[str], finished: Path, tmp_path: Path) -> None:
    with (tmp_path / name).open("a") as file:
        file.writelines(json.dumps({"text": f"film {i}", "label": label}) + "\n" for i in range(20))
    with pytest.raises(BiDoRAError) as caught:
        evaluate(finished)
    for word in (*words, "name the rows to score"):
        assert word in str(caught.value)


def test_file_that_is_gone_is_named_with_what_to_do(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(BiDoRAError, match=r"train\.jsonl does not exist(.|\n)*name the rows to score"):
        evaluate(finished)
    assert evaluate(finished, str(tmp_path / "test.jsonl")).scores


def test_copied_run_is_scored_where_it_lies(finished: Path, tmp_path: Path) -> None:
    scores = evaluate(finished).scores
    assert evaluate(shutil.copytree(finished, tmp_path / "copy")).scores == scores


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (folder.TASK, '{"name": "sequence-', "is damaged"),
        (folder.TASK, "[]", "is damaged: expected an object"),
        (folder.TASK, '{"name": "regression"}', "is damaged: it has no state, text, label, max_length"),
        (folder.TASK, None, "is damaged: .*No such file"),
        (folder.TASK, '{"name": "regression", "state": 3, "text": [], "label": "l", "max_length": 8}', "is damaged"),
        (folder.TASK, '{"name": "regression", "state": {}, "text": [], "label": "l", "max_length": 8}', "is damaged"),
        (folder.MANIFEST, "{}", "holds no run"),
        (folder.RECIPE, "model: [", "broken YAML"),
        (folder.RECIPE, "", "expected keys and values"),
        (folder.RECIPE, "model: 3", "input should be"),
        ("adapter/adapter_model.safetensors", "short", "cannot be loaded"),
        ("adapter/adapter_config.json", "{", "cannot be loaded"),
        ("adapter/adapter_config.json", None, "holds no adapter"),
        ("adapter/tokenizer.json", "{", "tokenizer"),
    ],
)
def test_damage_is_a_message_for_every_command(
    name: str, text: str | None, message: str, finished: Path, tmp_path: Path
) -> None:
    if text is None:
        (finished / name).unlink()
    else:
        (finished / name).write_text(text)
    rows = str(tmp_path / "test.jsonl")
    for command in (
        lambda: evaluate(finished, rows),
        lambda: predict_file(finished, rows, tmp_path / "out.csv"),
        lambda: merge(finished, tmp_path / "merged"),
    ):
        with pytest.raises(BiDoRAError, match=message):
            command()
    assert not (tmp_path / "out.csv").exists()


def test_run_that_is_not_finished_is_told_how_to_go_on(finished: Path) -> None:
    (finished / folder.METRICS).unlink()
    with pytest.raises(CheckpointError, match=r"not finished.*--resume"):
        read_run(finished)


def test_run_in_a_folder_of_any_name_is_read(finished: Path) -> None:
    moved = finished.with_name("run \U0001f600 'x'")
    finished.rename(moved)
    assert read_run(moved).recipe.output == moved


def test_merge_into_the_present_folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert merge(finished, Path(".")).folder == tmp_path / "empty"
    assert (tmp_path / "empty" / "config.json").is_file()


def test_numbers_that_json_lacks_are_null_in_the_files_of_a_run(tmp_path: Path) -> None:
    folder.write_json_lines(tmp_path / "a.jsonl", [{"x": float("nan"), "y": [float("inf"), 1.0]}])
    assert read_table(tmp_path / "a.jsonl").rows == [{"x": None, "y": [None, 1.0]}]


def test_logits_of_many_tokens_are_compared_at_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(torch.nn.Linear):
        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": torch.arange(500.0).view(1, 50, 10)}

    model, batch = Wide(1, 1), {"input_ids": torch.zeros(1, 50)}
    assert merge_module._logits(model, batch).shape == (1, 50, 10)
    monkeypatch.setattr(merge_module, "MOST_LOGITS", 100)
    found = merge_module._logits(model, batch)
    assert found.shape == (1, 10, 10)
    assert found[0, 1, 0] == 50  # every fifth token
