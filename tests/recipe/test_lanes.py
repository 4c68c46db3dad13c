"""A study of lanes: its runs are those of single commands, and it outlives kills and full memory."""

import json
import math
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
from peft_bidora.tasks.base_model import resolve_model

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


def _in_nats(metrics: dict[str, Any]) -> dict[str, Any]:
    """Perplexities as the losses that they are the exponentials of, in which rounding is small."""
    return {name: math.log(value) if "perplexity" in name else value for name, value in metrics.items()}


def assert_as_alone(
    recipe: Path, outcomes: list[Any], folder: Path, overrides: list[str] | None = None, atol: float = 1e-4
) -> None:
    for number, outcome in enumerate(outcomes):
        values = [f"{key}={value}" for key, value in outcome.setting.values.items()]
        alone = load_recipe(recipe, [*(overrides or []), *values, f"output={folder / str(number)}"])
        expected = run(alone)
        names = ("test", "selection", "kept", "rows", "trainable_parameters")
        told, wanted = (_in_nats(flat({name: each[name] for name in names})) for each in (outcome.metrics, expected))
        assert told == pytest.approx(wanted, rel=1e-3, abs=1e-4, nan_ok=True)  # float32
        found = load_file(outcome.setting.recipe.output / "adapter/adapter_model.safetensors")
        weights = load_file(alone.output / "adapter/adapter_model.safetensors")
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=atol)
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


@pytest.mark.slow
def test_lanes_of_a_real_model_are_the_runs_alone(tmp_path: Path) -> None:
    folder = shutil.copytree(resolve_model("builtin:minilm"), tmp_path / "minilm")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    recipe = Path(__file__).parents[2] / "examples/quickstart.yaml"
    overrides = [f"model={folder}", "search.steps=15", "retrain.steps=15", "eval_steps=5", "save_steps=5"]
    overrides.append("search.hypergradient=exact")  # a difference of float32 losses magnifies their last digits
    outcomes = study(recipe, ["seed=0..1 method=lora,dora,bidora"], [*overrides, f"output={tmp_path / 'study'}"])
    # Adam divides by the root of small squares: after 30 steps a few numbers of thousands differ by 1e-4 and more.
    assert_as_alone(recipe, outcomes, tmp_path / "alone", overrides, atol=5e-4)
    for number, outcome in enumerate(outcomes):
        paths = (outcome.setting.recipe.output, tmp_path / "alone" / str(number))
        found, expected = (
            [json.loads(row)["predicted_label"] for row in (path / "predictions.jsonl").read_text().splitlines()]
            for path in paths
        )
        assert found == expected


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
        (["seed=3..1"], "the range runs backwards"),
        (["seed=1, 2"], "blanks stand between keys alone"),
        ([""], "--lanes is empty"),
        (["seed=0..1 seed=4"], "seed is given already"),
        (["output=a,b"], "each lane has a folder of its own"),
        (["seed=1,1"], "a value stands twice"),
        (["seed=0..99999"], "more than 4,096 lanes"),
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
    found = []
    for free in [2.0**power for power in range(10, 34)]:
        monkeypatch.setattr(lanes_module, "_free_bytes", lambda free=free: free)
        found.append(lanes_module.lanes_that_fit(group, model))
    assert found == sorted(found)
    assert set(found) == {1, 2, 3} or set(found) == {1, 3}


def test_study_is_not_begun_over_another_or_resumed_where_there_is_none(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(method="lora")
    with pytest.raises(CheckpointError, match="holds no study to resume"):
        study(recipe, ["seed=0..1"], resume=True)
    study(recipe, ["seed=0..1"])
    with pytest.raises(RecipeError, match="holds a study already"):
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


@pytest.mark.parametrize("method", ["lora", "dora", "bidora"])
def test_lanes_in_bfloat16_are_near_the_runs_alone(method: str, make_recipe: Make, calm: Path, tmp_path: Path) -> None:
    recipe = make_recipe(model=str(calm), method=method, precision="bfloat16")
    (outcome,) = study(recipe, ["seed=0"])
    alone = load_recipe(recipe, [f"output={tmp_path / 'alone'}"])
    run(alone)
    found, weights = (
        load_file(each.output / "adapter/adapter_model.safetensors") for each in (outcome.setting.recipe, alone)
    )
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0.02)  # bfloat16 rounds to 3 digits


def test_lanes_keep_the_checkpoint_that_the_run_alone_keeps(make_recipe: Make, calm: Path, tmp_path: Path) -> None:
    recipe = make_recipe(model=str(calm), retrain__steps=8, eval_steps=1, save_steps=4, logging_steps=1)
    outcomes = study(recipe, ["seed=0..1 method=lora,bidora"])
    assert all(outcome.metrics["kept"]["step"] in (4, 8) for outcome in outcomes)
    assert_as_alone(recipe, outcomes, tmp_path / "alone")


def test_loss_that_breaks_a_tie_is_the_mean_over_words(make_recipe: Make, calm: Path, tmp_path: Path) -> None:
    words = [["it"] * (1 + 7 * (i % 3 == 0)) for i in range(40)]
    rows = [{"tokens": [f"x{i}", *each], "ner_tags": ["B-X", *["O"] * len(each)]} for i, each in enumerate(words)]
    recipe = make_recipe(
        train=rows, test=rows[:12], model=str(calm), task="token-classification", data__text=["tokens"],
        data__label="ner_tags", data__selection_fraction=0.4, retrain__steps=8, eval_batch_size=1,
    )  # fmt: skip
    outcomes = study(recipe, ["seed=0..3 method=lora"])
    assert_as_alone(recipe, outcomes, tmp_path / "alone")


def test_lanes_that_differentiate_twice_compute_with_eager_attention(make_recipe: Make) -> None:
    outcomes = study(make_recipe(search__hypergradient="exact"), ["method=lora,dora,bidora"])
    assert all(outcome.metrics is not None for outcome in outcomes)
    settings = load_settings(make_recipe(search__hypergradient="exact"), [], ["method=lora,dora,bidora"])
    _, model = lanes_module._lanes({setting.name: prepare(setting.recipe) for setting in settings})
    assert model.config._attn_implementation == "eager"


def test_one_label_a_row_and_several_are_not_of_one_shape(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe()
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    several = [{**row, "label": [row["label"]]} for row in rows]
    (tmp_path / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several))
    overrides = ["data.test=null", "data.test_fraction=0.2"]
    settings = load_settings(recipe, overrides, ["data.train=train.jsonl,several.jsonl"])
    assert list(map(len, grouped({setting.name: prepare(setting.recipe) for setting in settings}))) == [1, 1]


@pytest.mark.parametrize(
    ("lanes", "message"),
    [
        (["search.lower_steps=2,8"], r"search\.lower_steps=8: the search has 4 steps"),
        (["adapter.target_modules=query,valu"], "'valu' matches no linear layer"),
        (["data.upper_fraction=0 method=lora,bidora"], "There are no upper rows"),
    ],
)
def test_every_lane_is_checked_before_any_is_begun(lanes: list[str], message: str, make_recipe: Make) -> None:
    recipe = make_recipe()
    with pytest.raises(BiDoRAError, match=message):
        study(recipe, lanes)
    assert not load_recipe(recipe).output.exists()


@pytest.mark.parametrize(
    ("overrides", "lanes", "message"),
    [
        ([], ["data.train=x/y.jsonl,x_y.jsonl"], "would share the folder"),
        ([], ["push_to_hub=a/" + "b" * 250], "name that is too long"),
        (["report_to=[tensorboard]"], ["seed=0..1"], "report_to is of a single run"),
        (["push_to_hub=owner/name"], ["seed=0..1"], "push_to_hub is of a single run"),
    ],
)
def test_what_lanes_cannot_be_is_refused(
    overrides: list[str], lanes: list[str], message: str, make_recipe: Make
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_settings(make_recipe(), overrides, lanes)


def test_kill_among_the_finished_lanes_changes_no_bit_of_the_others(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe, lanes = make_recipe(select_best=False), ["seed=0..1 method=dora,bidora"]  # with dropout
    whole = study(recipe, lanes, [f"output={tmp_path / 'whole'}"])
    finish, left = lanes_module.finish, iter(range(3))

    def killed(*args: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return finish(*args, **options)

    def watch(phase: str, *_: Any) -> None:
        assert phase == "scoring", "a step was taken again"

    monkeypatch.setattr(lanes_module, "finish", killed)
    with pytest.raises(Killed):
        study(recipe, lanes)
    monkeypatch.setattr(lanes_module, "finish", finish)
    resumed = study(recipe, lanes, resume=True, watch=watch)
    for one, other in zip(whole, resumed, strict=True):
        paths = [each.setting.recipe.output / "adapter/adapter_model.safetensors" for each in (one, other)]
        weights = [load_file(path) for path in paths]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_lane_that_was_killed_while_its_folder_was_made_is_begun_again(make_recipe: Make) -> None:
    recipe = make_recipe(method="lora")
    outcomes = study(recipe, ["seed=0..1"])
    folder = outcomes[1].setting.recipe.output
    (folder / "metrics.json").unlink()
    (folder / "recipe.yaml").unlink()
    again = study(recipe, ["seed=0..1"], resume=True)
    assert again[0].metrics == outcomes[0].metrics
    assert again[1].metrics is not None


def test_begun_group_is_made_smaller_on_resume(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe()

    def watch(phase: str, *_: Any) -> None:
        if phase == "retrain":
            raise Killed

    with pytest.raises(Killed):
        study(recipe, ["seed=0..2"], watch=watch)
    sizes, train = [], lanes_module.train_lanes
    monkeypatch.setattr(lanes_module, "train_lanes", lambda *args: sizes.append(len(args[1])) or train(*args))
    study(recipe, ["seed=0..3"], resume=True, at_once=2)
    assert sizes == [2, 1, 1]


def test_overwritten_study_leaves_no_run_of_the_old_one(make_recipe: Make) -> None:
    recipe = make_recipe(method="lora")
    first, _ = study(recipe, ["seed=0..1"])
    study(recipe, ["seed=1"], overwrite=True)
    assert not first.setting.recipe.output.exists()
    single = load_recipe(recipe, [f"output={first.setting.recipe.output}"])
    run(single)
    with pytest.raises(RecipeError, match="holds a single run"):
        run_lanes(load_settings(recipe, [f"output={single.output}"], ["seed=0"]), single.output, overwrite=True)


def test_full_disk_leaves_the_last_checkpoint_and_no_part_of_another(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, save, saved = make_recipe(), torch.save, iter(range(2))

    def full(state: Any, path: Path) -> None:
        if next(saved, None) is None:
            path.write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="What was computed is kept"):
        study(recipe, ["seed=0..1"])
    checkpoints = load_recipe(recipe).output / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["0.pt"]
    monkeypatch.setattr(torch, "save", save)
    assert all(outcome.metrics is not None for outcome in study(recipe, ["seed=0..1"], resume=True))


@pytest.mark.parametrize("reverse", [False, True], ids=["mse", "r2"])
def test_best_lane_is_the_first_that_is_told(reverse: bool, make_recipe: Make) -> None:
    rows = [{"text": f"{TEXTS[i % 5]} {i}", "label": i / 4 + 0.25} for i in range(40)]
    recipe = make_recipe(train=rows, test=rows[:12], task="regression", select_by="r2" if reverse else "mse")
    told: list[list[float]] = []
    study(recipe, ["seed=0..2 method=lora"], watch=lambda *args: told.append(args[3]))
    best = [each for each in told if each][-1]
    assert len(best) == 3
    assert best == sorted(best, reverse=reverse)


def test_lane_that_is_not_finished_goes_on_with_its_study_alone(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe()
    (outcome,) = study(recipe, ["seed=0"])
    lane = outcome.setting.recipe.output
    (lane / "metrics.json").unlink()
    message = "holds a lane that is not finished. Go on with the study that it is of"
    with pytest.raises(CheckpointError, match=message):
        evaluate(lane)
    with pytest.raises(CheckpointError, match=message):
        run(load_recipe(lane / "recipe.yaml"), resume=True)
    assert study(recipe, ["seed=0"], resume=True)[0].metrics is not None
    assert not (tmp_path / "run/checkpoints").exists()


def test_folder_of_a_study_is_no_run(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe()
    study(recipe, ["seed=0"])
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RecipeError, match=r"holds a study of lanes\. Name its --lanes too"):
            run(load_recipe(recipe), **options)
    with pytest.raises(CheckpointError, match=r"holds a study of lanes\. Name the folder of one of them"):
        evaluate(tmp_path / "run")


def test_notes_name_the_lanes_that_they_are_of_and_groups_are_told(make_recipe: Make) -> None:
    train = [{"text": f"good film {i}", "label": ("pos", "neg")[i % 2]} for i in range(40)]
    told: list[str] = []
    # The same rows are test rows: what of them are training rows, a seed decides.
    study(make_recipe(train=train, test=train), ["seed=0..3", "adapter.rank=2,4"], announce=told.append)
    of_all = [note for note in told if note.startswith(("data.", "group"))]
    assert [note for note in of_all if note.startswith("group")] == [
        "group 1 of 2: 4 lanes, seed=0,adapter.rank=2, seed=1,adapter.rank=2 and 2 more",
        "group 2 of 2: 4 lanes, seed=0,adapter.rank=4, seed=1,adapter.rank=4 and 2 more",
    ]
    overlaps = [note for note in told if "also stand" in note]
    assert overlaps
    assert all("test rows also stand" in note for note in overlaps)


def test_log_of_a_lane_has_the_rate_and_norm_of_its_steps(make_recipe: Make, calm: Path, tmp_path: Path) -> None:
    recipe = make_recipe(model=str(calm))
    study(recipe, ["seed=0"])
    run(load_recipe(recipe, [f"output={tmp_path / 'alone'}"]))
    logs = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (tmp_path / "run/seed=0", tmp_path / "alone")
    ]
    lane, alone = ([entry for entry in log if "loss" in entry] for log in logs)
    assert len(lane) == len(alone) == 4
    for mine, single in zip(lane, alone, strict=True):
        assert (mine["phase"], mine["step"]) == (single["phase"], single["step"])
        for name in ("learning_rate", "grad_norm", "loss"):
            assert mine[name] == pytest.approx(single[name], rel=1e-4)
