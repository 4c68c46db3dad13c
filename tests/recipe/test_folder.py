"""The run folder: whose it is, what is written there, and what is said of damage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_bidora.errors import CheckpointError, RecipeError
from peft_bidora.recipe import folder
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import run

Make = Callable[..., Path]


def test_folder_begins_empty_of_an_earlier_run_and_keeps_what_is_foreign(make_recipe: Make) -> None:
    prepared = prepare(load_recipe(make_recipe()))
    output = prepared.recipe.output
    for name in folder.WRITTEN:
        (output / name).mkdir(parents=True)
    (output / "notes.txt").write_text("mine")
    manifest = folder.begin(prepared)
    begun = {folder.RECIPE, folder.MANIFEST, folder.TASK, "notes.txt"}
    assert {path.name for path in output.iterdir()} == begun
    assert json.loads((output / folder.MANIFEST).read_text()) == manifest
    assert manifest["rows"] == {"lower": 29, "upper": 7, "selection": 4, "test": 12}
    assert set(manifest["split_sha256"]) == {"lower", "upper", "selection", "test"}
    assert set(manifest["data_sha256"]) == {"train", "test"}
    assert set(manifest["versions"]) == {*folder.PACKAGES, "python"}
    assert folder.is_run(output)
    assert folder.check_same_run(prepared.recipe, prepared.rows) == manifest


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"split_sha256": 1, "data_sha256": {}, "rows": {}}', "[" * 100_000])
def test_folder_with_a_damaged_manifest_is_no_run(text: str, tmp_path: Path) -> None:
    (tmp_path / folder.MANIFEST).write_text(text)
    assert not folder.is_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no run: expected a manifest\.json that one wrote"):
        folder.require_run(tmp_path)
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        folder.check_output(tmp_path, resume=True, overwrite=False)
    with pytest.raises(RecipeError, match="files that are no run"):
        folder.check_output(tmp_path, resume=False, overwrite=True)


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RecipeError, match="is a file; expected a folder"):
        folder.check_output(tmp_path / "run", resume=False, overwrite=True)


def test_what_a_killed_run_left_before_it_began_is_no_file_of_others(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "manifest.json.partial").write_text('{"vers')
    folder.check_output(tmp_path, resume=False, overwrite=False)


def test_run_that_was_killed_while_it_replaced_another_is_not_taken_for_finished(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(load_recipe(make_recipe()))
    folder.begin(prepared)
    output = prepared.recipe.output
    (output / "adapter").mkdir()
    (output / folder.METRICS).touch()

    def killed(path: Path) -> None:
        raise KeyboardInterrupt(path.name)

    monkeypatch.setattr(folder.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt, match="adapter"):
        folder.begin(prepared)
    assert not (output / folder.METRICS).exists()


@pytest.mark.parametrize("name", [folder.TASK, folder.RECIPE])
def test_run_that_was_killed_while_it_began_is_not_resumed(
    name: str, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, write_text = prepare(load_recipe(make_recipe())), folder.write_text

    def killed(path: Path, text: str) -> None:
        if path.name == name:
            raise KeyboardInterrupt(name)
        write_text(path, text)

    monkeypatch.setattr(folder, "write_text", killed)
    with pytest.raises(KeyboardInterrupt, match=name):
        folder.begin(prepared)
    with pytest.raises(CheckpointError, match="Start the run anew with --overwrite"):
        folder.check_same_run(prepared.recipe, prepared.rows)
    folder.check_output(prepared.recipe.output, resume=False, overwrite=True)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "\x00"])
def test_run_with_a_damaged_recipe_is_not_resumed(text: str, make_recipe: Make) -> None:
    prepared = prepare(load_recipe(make_recipe()))
    folder.begin(prepared)
    (prepared.recipe.output / folder.RECIPE).write_text(text)
    with pytest.raises(CheckpointError, match="overwrite"):
        folder.check_same_run(prepared.recipe, prepared.rows)


@pytest.mark.parametrize("text", ["", "{}", "[3]", '{"seconds": null}'])
def test_damaged_clock_is_said_before_weights_are_loaded(text: str, make_recipe: Make) -> None:
    prepared = prepare(load_recipe(make_recipe()))
    folder.begin(prepared)
    (prepared.recipe.output / folder.SECONDS).write_text(text)
    with pytest.raises(CheckpointError, match=r"seconds\.json is damaged: .*\. Remove it: the time is then counted"):
        run(prepared.recipe, resume=True)


def test_damaged_metrics_are_scored_again_once_they_are_removed(make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(method="lora", retrain__steps=2))
    metrics = run(recipe)
    path = recipe.output / folder.METRICS
    for text in ("", "{}", "3"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"metrics\.json is damaged: .*Remove it: --resume then scores"):
            run(recipe, resume=True)
    path.unlink()
    assert run(recipe, resume=True)["test"] == metrics["test"]


def test_half_a_surrogate_pair_of_any_column_is_kept(make_recipe: Make) -> None:
    rows = [{"text": f"film {i}", "label": "ab"[i % 2], "note": "é\ud800", "\ud800": 1} for i in range(30)]
    recipe = load_recipe(make_recipe(rows, rows[:4], method="lora", retrain__steps=1))
    run(recipe)
    told = (recipe.output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["note"] for line in told] == ["é\ud800"] * 4
    assert json.loads(told[0])["\ud800"] == 1


def test_file_that_cannot_be_written_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    folder.write_json(path, {"a": "é"})
    with pytest.raises(UnicodeEncodeError):
        folder.write_text(path, "\ud800")
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é"\n}\n'
    assert list(tmp_path.iterdir()) == [path]
