"""Trials of settings: what they draw, that test rows stay unread, and that a kill loses one trial at most."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from peft_bidora.errors import BiDoRAError, CheckpointError, NonFiniteError, RecipeError
from peft_bidora.recipe import finish as finish_module
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.schema import Recipe
from peft_bidora.study import tune as tune_module
from peft_bidora.study.tune import Tried, draw, tune

Make = Callable[..., Path]


def test_best_recipe_is_that_of_the_best_selection_metric(make_recipe: Make, tmp_path: Path) -> None:
    told: list[Tried] = []
    result = tune(make_recipe(), [], trials=3, watch=told.append)

    assert [trial.number for trial in told] == [0, 1, 2]
    values = [trial.value for trial in told]
    assert result["best"]["value"] == max(values)
    best = load_recipe(tmp_path / "run/best.yaml")
    drawn = dict(override.split("=") for override in told[result["best"]["trial"]].overrides)
    assert best.adapter.rank == int(drawn["adapter.rank"])
    assert best.data.upper_fraction == float(drawn["data.upper_fraction"])
    assert best.search.learning_rate == float(drawn["search.learning_rate"])
    assert not (tmp_path / "run/trial").exists()
    assert json.loads((tmp_path / "run/tune.json").read_text())["best"] == result["best"]


def test_test_rows_are_not_predicted(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("rows were predicted")

    monkeypatch.setattr(finish_module, "predict", forbidden)
    tune(make_recipe(), [], trials=1)


def test_draws_stay_near_the_recipe_and_keep_its_scaling(make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        drawn = dict(text.split("=") for text in draw(study.ask(), recipe))
        assert 5e-4 <= float(drawn["retrain.learning_rate"]) <= 5e-2
        assert float(drawn["retrain.learning_rate"]) == float(drawn["search.learning_rate"])
        assert int(drawn["adapter.alpha"]) == 2 * int(drawn["adapter.rank"])
        assert 0.1 <= float(drawn["data.upper_fraction"]) <= 0.5
        load_recipe(make_recipe(), [f"{key}={value}" for key, value in drawn.items()])
    lora = draw(study.ask(), load_recipe(make_recipe(method="lora")))
    assert [text.split("=")[0] for text in lora] == ["retrain.learning_rate", "adapter.rank", "adapter.alpha"]


def test_resumed_trials_go_on_after_the_one_that_was_killed(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe, made = make_recipe(), tune_module.make_trainer

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> Any:
        raise Killed

    tune(recipe, [], trials=1)
    monkeypatch.setattr(tune_module, "make_trainer", kill)
    with pytest.raises(Killed):
        tune(recipe, [], trials=2, resume=True)
    monkeypatch.setattr(tune_module, "make_trainer", made)
    told: list[Tried] = []
    result = tune(recipe, [], trials=3, resume=True, watch=told.append)

    assert [trial.number for trial in told] == [2, 3]
    assert [trial["state"] for trial in result["trials"]] == ["complete", "fail", "complete", "complete"]
    with pytest.raises(RecipeError, match="holds a study already"):
        tune(recipe, [], trials=3)
    with pytest.raises(CheckpointError, match="are of another recipe"):
        tune(recipe, ["retrain.steps=6"], trials=3, resume=True)
    assert len(tune(recipe, [], trials=3, resume=True)["trials"]) == 4  # which the other has not spoilt
    (tmp_path / "run/trial").mkdir()
    (tmp_path / "run/trial/notes.txt").write_text("mine")
    assert len(tune(recipe, [], trials=1, overwrite=True)["trials"]) == 1
    assert (tmp_path / "run/trial/notes.txt").is_file()
    with (tmp_path / "run/optuna-trials.log").open("a") as file:
        file.write('{"op_code": ')  # a kill in the middle of a record
    assert len(tune(recipe, [], trials=2, resume=True)["trials"]) == 2
    (tmp_path / "run/optuna-trials.log").write_text("{\n{\n")
    with pytest.raises(CheckpointError, match=r"optuna-trials\.log is damaged"):
        tune(recipe, [], trials=2, resume=True)


def test_trial_that_is_not_finite_is_passed_over(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made, counted = tune_module.make_trainer, []

    def make(prepared: Any) -> Any:
        trainer = made(prepared)
        counted.append(trainer)
        if len(counted) == 1:
            trainer.train = lambda: (_ for _ in ()).throw(NonFiniteError("not finite"))
        return trainer

    monkeypatch.setattr(tune_module, "make_trainer", make)
    told: list[Tried] = []
    result = tune(make_recipe(), [], trials=2, watch=told.append)
    assert [trial.state for trial in told] == ["failed", "complete"]
    assert result["best"]["trial"] == 1


def test_trial_worse_than_others_at_its_step_is_given_up(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda self: self.number == 1)
    told: list[Tried] = []
    tune(make_recipe(), [], trials=2, watch=told.append)
    assert [trial.state for trial in told] == ["complete", "pruned"]


def test_rows_to_choose_by_are_needed(make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match="tune chooses on selection rows"):
        tune(make_recipe(data__selection_fraction=0.0, select_best=False), [], trials=1)


def test_missing_optuna_is_told_with_its_extra(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(BiDoRAError, match=r"pip install 'peft-bidora\[tune\]'"):
        tune(make_recipe(), [], trials=1)


def test_trial_whose_metric_is_no_number_is_passed_over(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = tune_module._Judge.on_evaluate

    def evaluate(self: Any, args: Any, state: Any, control: Any, metrics: Any = None, **rest: Any) -> None:
        if self._trial.number == 0:
            metrics = {**metrics, "eval_accuracy": float("nan")}
        judged(self, args, state, control, metrics, **rest)

    monkeypatch.setattr(tune_module._Judge, "on_evaluate", evaluate)
    told: list[Tried] = []
    assert tune(make_recipe(), [], trials=2, watch=told.append)["best"]["trial"] == 1
    assert told[0].reason == "the selection accuracy is nan"


def test_key_without_a_value_that_a_later_version_brings_leaves_trials_what_they_were(make_recipe: Make) -> None:
    class Later(Recipe):
        later: int | None = None

    prepared = prepare(load_recipe(make_recipe()))
    values = prepared.recipe.model_dump(by_alias=True)
    same, other = (Later.model_validate({**values, "later": value}) for value in (None, 1))
    assert tune_module._identity(replace(prepared, recipe=same)) == tune_module._identity(prepared)
    assert tune_module._identity(replace(prepared, recipe=other)) != tune_module._identity(prepared)
