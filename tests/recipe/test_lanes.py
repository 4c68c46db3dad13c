"""A study of lanes: its runs are those of single commands, and it outlives kills and full memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from peft_bidora.errors import BiDoRAError, CheckpointError, RecipeError
from peft_bidora.recipe import lanes as lanes_module
from peft_bidora.recipe.finished import evaluate
from peft_bidora.recipe.lane_settings import grouped, load_settings
from peft_bidora.recipe.lanes import run_lanes
from peft_bidora.recipe.load import flat, load_recipe
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import run

Make = Callable[..., Path]


@pytest.fixture
def calm(model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model without dropout, whose masks a lane draws otherwise than its run alone."""
    folder = shutil.copytree(model_folder, tmp_path / "calm")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def study(recipe: Path, lanes: list[str], overrides: list[str] | None = None, **options: Any) -> list[Any]:
    settings = load_settings(recipe, overrides or [], lanes)
    return run_lanes(settings, load_recipe(recipe, overrides or []).output, **options)


def assert_as_alone(recipe: Path, outcomes: list[Any], folder: Path, overrides: list[str] | None = None) -> None:
    for number, outcome in enumerate(outcomes):
        values = [f"{key}={value}" for key, value in outcome.setting.values.items()]
        alone = load_recipe(recipe, [*(overrides or []), *values, f"output={folder / str(number)}"])
        expected = run(alone)
        names = ("test", "selection", "kept", "rows", "trainable_parameters")
        told, wanted = (flat({name: each[name] for name in names}) for each in (outcome.metrics, expected))
        assert told == pytest.approx(wanted, rel=1e-3, abs=1e-4, nan_ok=True)  # float32
        found = load_file(outcome.setting.recipe.output / "adapter/adapter_model.safetensors")
        weights = load_file(alone.output / "adapter/adapter_model.safetensors")
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)
        configs = [
            json.loads((path / "adapter/adapter_config.json").read_text())
            for path in (outcome.setting.recipe.output, alone.output)
        ]
        assert configs[0] == configs[1]


LANES = ["seed=0,3 method=lora,dora,bidora", "retrain.learning_rate=1e-3,5e-3"]
TEXTS = ("good film", "bad film so poor", "a very fine day it was", "the shop", "awful")


def test_lanes_are_the_runs_of_single_commands(make_recipe: Make, calm: Path, tmp_path: Path) -> None:
    recipe = make_recipe(model=str(calm))
    outcomes = study(recipe, LANES)
    assert [outcome.setting.name for outcome in outcomes][:2] == [
        "seed=0,method=lora,retrain.learning_rate=1e-3",
        "seed=0,method=lora,retrain.learning_rate=5e-3",
    ]
    assert len(outcomes) == 12
    assert_as_alone(recipe, outcomes, tmp_path / "alone")
    first = outcomes[4].setting.recipe.output
    assert evaluate(first).scores == outcomes[4].metrics["test"]
    stock = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(calm, num_labels=2), str(first / "adapter")
    )
    assert stock.peft_config["default"].use_dora


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ("regression", lambda index: index / 4 + 0.25),
        ("sequence-classification", lambda index: ["a", "b"] if index % 2 else ["b"]),
    ],
    ids=["regression", "multi-label"],
)
def test_lanes_of_another_label_are_the_runs_alone(
    task: str, label: Callable[[int], Any], make_recipe: Make, calm: Path, tmp_path: Path
) -> None:
    rows = [{"text": f"{TEXTS[i % 5]} {i}", "label": label(i)} for i in range(40)]
    recipe = make_recipe(train=rows, test=rows[:12], model=str(calm), task=task)
    outcomes = study(recipe, ["seed=0..1 method=bidora,lora"])
    assert_as_alone(recipe, outcomes, tmp_path / "alone")


def test_lanes_of_tags_are_the_runs_alone(make_recipe: Make, calm: Path, tmp_path: Path) -> None:
    words = [TEXTS[i % 5].split() + ["it"] * (i % 3) for i in range(40)]
    rows = [{"tokens": each, "ner_tags": ["B-X", *["O"] * (len(each) - 1)]} for each in words]
    recipe = make_recipe(
        train=rows, test=rows[:12], model=str(calm), task="token-classification", data__text=["tokens"],
        data__label="ner_tags",
    )  # fmt: skip
    outcomes = study(recipe, ["seed=0..1 method=bidora,dora"])
    assert_as_alone(recipe, outcomes, tmp_path / "alone")


@pytest.mark.parametrize("architecture", ["gpt2", "t5", "bart"])
def test_lanes_that_write_are_the_runs_alone(
    architecture: str, make_tokenizer: Any, make_language_model: Any, tmp_path: Path
) -> None:
    folder = tmp_path / architecture
    make_language_model(architecture).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    nouns = enumerate(("fox", "cat", "red", "blue"), 1)
    pairs = [(count, f"{noun} {verb}") for count, noun in nouns for verb in ("runs", "sits", "now")]
    rows = [{"prompt": f"say {text}", "completion": f"{text} " * count} for count, text in pairs]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {folder}\ntask: text-generation\n"
        "data: {train: train.jsonl, test: train.jsonl, selection_fraction: 0.2}\n"
        "adapter: {rank: 2, alpha: 4}\nsearch: {steps: 2, batch_size: 4, lower_steps: 1}\n"
        "retrain: {steps: 4, batch_size: 4}\ngeneration: {max_new_tokens: 5}\neval_steps: 2\nsave_steps: 2\n"
        f"output: {tmp_path / 'run'}\n"
    )
    outcomes = study(recipe, ["seed=0..1 method=bidora,lora"])
    assert_as_alone(recipe, outcomes, tmp_path / "alone")


@pytest.mark.parametrize(
    ("lanes", "message"),
    [
        (["seed"], r"--lanes 'seed': expected key=list, such as seed=0\.\.15"),
        (["seed=0,,1"], "expected key=list"),
        (["seed=3..1"], "expected key=list"),
        ([""], "--lanes is empty"),
        (["seed=0..1 seed=4"], "seed is given already"),
        (["output=a,b"], "output is given already, or is each lane's own"),
        (["seed=1,1"], "a value stands twice"),
        (["seed=0..99999"], "4,097 lanes, more than 4,096"),
        (["method=lora,full"], "method=full trains the base model, which lanes share"),
        (["sed=0..2"], r"sed: there is no such key\. Did you mean 'seed'"),
        (["seed=0..1 search.xi=1,much"], "search.xi='much'"),
    ],
)
def test_list_that_is_wrong_is_told(lanes: list[str], message: str, make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=message):
        load_settings(make_recipe(), [], lanes)


def test_runs_of_one_shape_are_grouped(make_recipe: Make) -> None:
    settings = load_settings(
        make_recipe(), [], ["method=bidora,lora seed=0..1 adapter.rank=2,4", "search.lower_steps=1,2"]
    )
    groups = grouped({setting.name: prepare(setting.recipe) for setting in settings})
    # The search of LoRA's recipe is not read: its lanes go with the first group of their rank.
    assert sorted(map(len, groups)) == [2, 2, 6, 6]
    for names in groups:
        assert len({name.split("rank=")[1][0] for name in names}) == 1
        assert len({name.split("lower_steps=")[1] for name in names if "bidora" in name}) == 1


def test_runs_of_other_estimators_or_classes_are_not_of_one_shape(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe()
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    more = [{**row, "label": "both"} if index % 3 else row for index, row in enumerate(rows)]
    (tmp_path / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    for lanes in (
        ["search.xi=1.0,adam"],
        ["data.train=train.jsonl,three.jsonl"],
        ["search.hypergradient=exact,one-sided"],
    ):
        settings = load_settings(recipe, [], lanes)
        assert list(map(len, grouped({setting.name: prepare(setting.recipe) for setting in settings}))) == [1, 1]
    settings = load_settings(recipe, [], ["search.xi=1.0,0.5 retrain.from=initial,search adapter.alpha=2,4"])
    assert list(map(len, grouped({setting.name: prepare(setting.recipe) for setting in settings}))) == [8]


class Killed(Exception):
    pass


@pytest.mark.parametrize(("phase", "step"), [("search", 3), ("retrain", 3)])
def test_killed_study_goes_on_where_it_was(phase: str, step: int, make_recipe: Make, tmp_path: Path) -> None:
    recipe, lanes = make_recipe(), ["seed=0..1 method=lora,bidora"]
    whole = study(recipe, lanes, [f"output={tmp_path / 'whole'}"])

    def watch(now: str, done: int, _steps: int, _best: list[float]) -> None:
        if (now, done) == (phase, step):
            raise Killed

    with pytest.raises(Killed):
        study(recipe, lanes, watch=watch)
    steps: list[tuple[str, int]] = []
    resumed = study(recipe, lanes, resume=True, watch=lambda now, done, *_: steps.append((now, done)))
    assert steps[0] == (phase, 3)  # from the checkpoint of step 2
    for one, other in zip(whole, resumed, strict=True):
        assert one.metrics["test"] == other.metrics["test"]
        weights = [load_file(each.setting.recipe.output / "adapter/adapter_model.safetensors") for each in (one, other)]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    again = study(recipe, lanes, resume=True, watch=lambda *_: pytest.fail("a finished lane was trained again"))
    assert [each.metrics for each in again] == [each.metrics for each in resumed]


def test_group_that_does_not_fit_goes_on_in_halves(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, train = [], lanes_module.train_lanes

    def tight(model: Any, lanes: Any, collate: Any, checkpoint: Path, watch: Any) -> float:
        sizes.append((len(lanes), checkpoint.is_file()))

        def full(phase: str, step: int, *_: Any) -> None:
            if len(lanes) > 2 and (phase, step) == ("search", 3):
                raise torch.OutOfMemoryError("CUDA out of memory")

        return train(model, lanes, collate, checkpoint, full)

    monkeypatch.setattr(lanes_module, "train_lanes", tight)
    told: list[str] = []
    outcomes = study(make_recipe(), ["seed=0..3"], announce=told.append)
    assert sizes == [(4, False), (2, True), (2, True)]
    assert "4 lanes do not fit the memory; they go on in two halves." in told
    assert all(outcome.metrics is not None for outcome in outcomes)


def test_lane_that_does_not_fit_alone_is_an_error(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lanes_module, "train_lanes", full)
    with pytest.raises(CheckpointError, match=r"seed=0 alone does not fit the memory\. Lower batch_size"):
        study(make_recipe(), ["seed=0..1"])


def test_error_that_is_not_of_memory_passes(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise RuntimeError("something else")

    monkeypatch.setattr(lanes_module, "train_lanes", broken)
    with pytest.raises(RuntimeError, match="something else"):
        study(make_recipe(), ["seed=0..1"])


def test_no_more_lanes_are_begun_than_fit_or_are_asked_for(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, train = [], lanes_module.train_lanes
    monkeypatch.setattr(lanes_module, "train_lanes", lambda *args: sizes.append(len(args[1])) or train(*args))
    study(make_recipe(), ["seed=0..4"], at_once=2)
    assert sizes == [2, 2, 1]
    sizes.clear()
    monkeypatch.setattr(lanes_module, "lanes_that_fit", lambda group, model: 3)
    told: list[str] = []
    study(make_recipe(), ["seed=0..4"], overwrite=True, announce=told.append)
    assert sizes == [3, 2]
    assert "5 lanes may not fit the memory; they are trained 3 at a time." in told


def test_lanes_fit_by_the_memory_that_is_free(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(make_recipe(), [], ["seed=0..2"])
    group = {setting.name: prepare(setting.recipe) for setting in settings}
    _, model = lanes_module._lanes(group)
    monkeypatch.setattr(lanes_module, "_free_bytes", lambda: 10**9)
    some = lanes_module.lanes_that_fit(group, model)
    monkeypatch.setattr(lanes_module, "_free_bytes", lambda: 2 * 10**9)
    assert lanes_module.lanes_that_fit(group, model) == pytest.approx(2 * some, abs=1)
    monkeypatch.setattr(lanes_module, "_free_bytes", lambda: 1)
    assert lanes_module.lanes_that_fit(group, model) == 1


def test_study_is_not_begun_over_another_or_resumed_where_there_is_none(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(method="lora")
    with pytest.raises(CheckpointError, match="holds no study to resume"):
        study(recipe, ["seed=0..1"], resume=True)
    study(recipe, ["seed=0..1"])
    with pytest.raises(RecipeError, match="holds another study"):
        study(recipe, ["seed=0..1"])
    with pytest.raises(CheckpointError, match=r"has the lane seed=0 too"):
        study(recipe, ["seed=1..2"], resume=True)
    with pytest.raises(BiDoRAError, match=r"retrain\.steps was 4 and is 5"):
        study(recipe, ["seed=0..1"], ["retrain.steps=5"], resume=True)
    assert len(study(recipe, ["seed=0..2"], resume=True)) == 3  # more may be added


def test_lane_that_diverges_is_told_and_not_trained_again(make_recipe: Make) -> None:
    recipe, lanes = make_recipe(method="dora", retrain__max_grad_norm=0.0), ["retrain.learning_rate=1e-3,1e38"]
    fine, stopped = study(recipe, lanes)
    assert fine.metrics is not None
    assert stopped.metrics is None
    assert "finite" in stopped.stopped
    assert not (stopped.setting.recipe.output / "adapter").exists()
    again = study(recipe, lanes, resume=True, watch=lambda *_: pytest.fail("it was trained again"))
    assert [each.stopped for each in again] == [None, stopped.stopped]


def test_faults_of_all_lanes_are_told_at_once(make_recipe: Make) -> None:
    with pytest.raises(BiDoRAError) as caught:
        study(make_recipe(), ["adapter.target_modules=querry,valu"])
    assert len(caught.value.faults) == 2
