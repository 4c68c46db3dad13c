"""`train` on several processes: the recipe, the run folder and the metrics of one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import rank_commands
from launching import run_ranks
from recipes import rows
from safetensors.torch import load_file

from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.run import run

GOOD = ("good", "fine", "great")


def tagged(row: dict[str, Any]) -> dict[str, Any]:
    words = row["text"].split()
    return {"tokens": words, "tags": ["B-WORD" if word in GOOD else "O" for word in words]}


def written(row: dict[str, Any]) -> dict[str, Any]:
    words = row["text"].split()
    return {"prompt": " ".join(words[:2]), "completion": " ".join(words[2 : 3 + len(words[0]) % 2])}


# Of 36 rows that are learned from, 29 are lower and 7 upper: their last batches have one row and three.
TASKS: dict[str, dict[str, Any]] = {
    "sequence-classification": {"data__text": ["text"], "data__label": "label"},
    "regression": {"data__text": ["text"], "data__label": "label"},
    "token-classification": {"data__text": ["tokens"], "data__label": "tags"},
    "text-generation": {"data__text": None, "data__label": None, "generation": {"max_new_tokens": 3}},
}
ROWS = {
    "sequence-classification": lambda row: row,
    "regression": lambda row: {**row, "label": float(len(row["text"]))},
    "token-classification": tagged,
    "text-generation": written,
}


@pytest.fixture
def recipes(make_recipe, model_folder: Path, make_language_model, make_tokenizer, tmp_path: Path):
    """A recipe of each task, of models without dropout."""
    still = tmp_path / "still"
    shutil.copytree(model_folder, still)
    config = json.loads((still / "config.json").read_text())
    (still / "config.json").write_text(
        json.dumps({**config, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0})
    )
    writer = tmp_path / "writer"
    make_language_model("gpt2").save_pretrained(writer)
    make_tokenizer().save_pretrained(writer)
    made = {}
    for task, options in TASKS.items():
        model = writer if task == "text-generation" else still
        train, test = ([ROWS[task](row) for row in part] for part in (rows(40), rows(7, 100)))
        path = make_recipe(
            train, test, task=task, model=str(model), eval_batch_size=2, output=str(tmp_path / "run" / task), **options
        )
        folder = tmp_path / task
        folder.mkdir()
        for name in ("recipe.yaml", "train.jsonl", "test.jsonl"):
            shutil.move(tmp_path / name, folder / name)
        made[task] = folder / path.name
    return made


def test_two_processes_write_the_run_of_one(recipes: dict[str, Path], tmp_path: Path) -> None:
    commands = [["train", str(path), f"output={tmp_path / 'two' / task}"] for task, path in recipes.items()]
    first, second = run_ranks(rank_commands.give, tmp_path / "ranks", commands)
    for (task, path), said, silent in zip(recipes.items(), first, second, strict=True):
        assert said[0] == 0, said
        assert "adapter" in said[1]
        assert silent == (0, "", "")
        whole, found = run(load_recipe(path)), json.loads((tmp_path / "two" / task / "metrics.json").read_text())
        for part in ("selection", "test"):
            for name, score in whole[part].items():
                # A correlation of predictions that hardly differ yet makes the rounding of float32 larger.
                assert found[part][name] == pytest.approx(score, rel=1e-3, abs=1e-3), (task, part, name)
        assert found["kept"] == whole["kept"]
        one, two = (
            load_file(folder / task / "adapter" / "adapter_model.safetensors")
            for folder in (tmp_path / "run", tmp_path / "two")
        )
        for name, value in one.items():
            # float32 sums in another order, which Adam's first steps of a gradient near zero make larger.
            assert (two[name] - value).abs().max() < 1e-4, (task, name)
        manifest = json.loads((tmp_path / "two" / task / "manifest.json").read_text())
        assert manifest["processes"] == 2
        files = {path.name for path in (tmp_path / "run" / task).iterdir()}
        assert {path.name for path in (tmp_path / "two" / task).iterdir()} - {"report.html"} == files - {"report.html"}
