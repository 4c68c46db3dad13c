"""`train` on several processes: the recipe, the run folder and the metrics of one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rank_commands
from launching import run_ranks
from recipes import rows
from safetensors.torch import load_file

from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.run import run

Row = dict[str, Any]
GOOD = ("good", "fine", "great")


def tagged(row: Row) -> Row:
    words = row["text"].split()
    return {"tokens": words, "tags": ["B-WORD" if word in GOOD else "O" for word in words]}


def written(row: Row) -> Row:
    words = row["text"].split()
    return {"prompt": " ".join(words[:2]), "completion": " ".join(words[2 : 3 + len(words[0]) % 2])}


# What a row becomes and what else the recipe says. Of 41 rows 5 are for the selection, 29 of the lower level, 7 of the
# upper one: of batches of 4, the last ones have one row, which only one process can have, one, and three.
RUNS: dict[str, tuple[Callable[[Row], Row], Row]] = {
    "classes": (dict, {"search": {"steps": 8, "batch_size": 2, "gradient_accumulation_steps": 2, "lower_steps": 2}}),
    "numbers": (lambda row: {**row, "label": float(len(row["text"]))}, {"task": "regression"}),
    "tags": (tagged, {"task": "token-classification"}),
    "texts": (written, {"task": "text-generation", "generation": {"max_new_tokens": 3}}),
    "lora": (dict, {"method": "lora", "classification": {"class_weights": {"pos": 3.0}}}),
    "full": (dict, {"method": "full"}),
    "packed": (dict, {"quantization": "4bit", "retrain": {"steps": 2, "batch_size": 4}}),
}


@pytest.fixture
def recipes(make_recipe, model_folder: Path, make_language_model, make_tokenizer, tmp_path: Path) -> dict[str, Path]:
    """A recipe of each run, of models without dropout."""
    still, writer = tmp_path / "still", tmp_path / "writer"
    shutil.copytree(model_folder, still)
    config = json.loads((still / "config.json").read_text())
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    (still / "config.json").write_text(json.dumps({**config, **rates}))
    make_language_model("gpt2").save_pretrained(writer)
    make_tokenizer().save_pretrained(writer)
    made = {}
    for run_name, (become, options) in RUNS.items():
        train, test = ([become(row) for row in part] for part in (rows(41), rows(7, 100)))
        columns = {"data__text": None, "data__label": None} if "label" not in train[0] else {}
        options = {
            "data__selection_fraction": 0.12,
            "eval_batch_size": 2,
            "model": str(writer if run_name == "texts" else still),
            **columns,
            **options,
        }
        path = make_recipe(train, test, output=str(tmp_path / "one" / run_name), **options)
        folder = tmp_path / "recipes" / run_name
        folder.mkdir(parents=True)
        for file_name in (path.name, "train.jsonl", "test.jsonl"):
            shutil.move(tmp_path / file_name, folder / file_name)
        made[run_name] = folder / path.name
    return made


@pytest.mark.parametrize(("sharded", "names"), [(False, list(RUNS)), (True, ["classes", "texts", "lora"])])
def test_two_processes_write_the_run_of_one(
    sharded: bool, names: list[str], recipes: dict[str, Path], tmp_path: Path
) -> None:
    # Checkpoints save memory beside shards, and change no value.
    saving = ["activation_checkpointing=true"] if sharded else []
    commands = [["train", str(recipes[name]), f"output={tmp_path / 'two' / name}", *saving] for name in names]
    first, second = run_ranks(rank_commands.give, tmp_path / "ranks", commands, sharded=sharded)
    for name, said, silent in zip(names, first, second, strict=True):
        path = recipes[name]
        assert said[0] == 0, said
        assert "Load it without this package" in said[1]
        assert silent == (0, "", "")
        run(load_recipe(path))
        assert_same_run(*(tmp_path / which / name for which in ("one", "two")))
        manifest = json.loads((tmp_path / "two" / name / "manifest.json").read_text())
        assert (manifest["processes"], manifest["sharded"]) == (2, sharded)


def assert_same_run(one: Path, two: Path) -> None:
    whole, found = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    for part in ("selection", "test"):
        for name, score in whole[part].items():
            # A correlation of predictions that hardly differ yet makes the rounding of float32 larger.
            assert found[part][name] == pytest.approx(score, rel=1e-3, abs=1e-3), (two, part, name)
    if one.name != "texts":  # whose rows of one prompt are in one split
        assert whole["rows"] == {"lower": 29, "upper": 7, "selection": 5, "test": 7}
    same = ("kept", "rows", "trainable_parameters", "notes")
    assert {name: found[name] for name in same} == {name: whole[name] for name in same}
    (weights,) = (path.relative_to(one) for path in one.glob("[am]*/*model.safetensors"))
    if weights.parent.name == "adapter":
        whole, found = (json.loads((folder / "adapter" / "adapter_config.json").read_text()) for folder in (one, two))
        assert {**found, "target_modules": sorted(found["target_modules"])} == {
            **whole,
            "target_modules": sorted(whole["target_modules"]),  # a set, in any order
        }
    expected, trained = (load_file(folder / weights) for folder in (one, two))
    assert expected.keys() == trained.keys()
    for name, value in expected.items():
        # float32 sums in another order, which Adam's first steps along a gradient near zero make larger.
        assert (trained[name] - value).abs().max() < 1e-4, (two, name)
    # The command makes a model card too.
    assert {path.name for path in two.iterdir()} - {"report.html"} == {path.name for path in one.iterdir()}
