"""What is compared: labels, rates, seeds and folds, and the faults of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_bidora.errors import BiDoRAError, RecipeError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare
from peft_bidora.study import plan as plan_module
from peft_bidora.study.plan import NUMBER, make_plan

Make = Callable[..., Path]


def test_rates_are_factors_of_both_phases_and_levels(make_recipe: Make) -> None:
    recipe = make_recipe(search__learning_rate=1e-3, search__upper_learning_rate=4e-3, retrain__learning_rate=2e-3)
    plan = make_plan(recipe, ["seed=5"], ["lora", "bidora search.lower_steps=1"], seeds=2, rates=[1.0, 0.5])

    assert plan.runs == 8
    assert plan.seeds == (5, 6)
    second = plan.variants[1]
    assert [setting.name for setting in second.settings] == [
        *("rate=1,seed=5", "rate=1,seed=6", "rate=0.5,seed=5", "rate=0.5,seed=6"),
    ]
    last = second.settings[-1].recipe
    assert (last.search.learning_rate, last.search.upper_learning_rate) == (5e-4, 2e-3)
    assert (last.retrain.learning_rate, last.search.lower_steps, last.method, last.seed) == (1e-3, 1, "bidora", 6)
    assert last.output.parent == plan.folder(second)
    assert len({setting.recipe.output for variant in plan.variants for setting in variant.settings}) == 8
    assert (plan.metric, plan.lower_is_better) == ("accuracy", False)


def test_folds_are_those_of_each_seed(make_recipe: Make) -> None:
    plan = make_plan(make_recipe(), ["data.test=null"], ["lora"], seeds=2, folds=4)

    assert [setting.name for setting in plan.variants[0].settings][3:5] == [
        "rate=1,seed=0,fold=3",
        "rate=1,seed=1,fold=0",
    ]
    assert [setting.recipe.data.fold for setting in plan.variants[0].settings] == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (["lora", "lora"], {}, r"'lora' stands twice"),
        ([""], {}, r"--methods is empty"),
        (["search.xi=1"], {}, r"expected a method first"),
        *(
            ([f"lora {key}=3"], {}, rf"{key}=3 is of all methods")
            for key in (
                "seed",
                "output",
                "data.fold",
                "data.folds",
                "data.test",
                "data.test_fraction",
                "data.test_seed",
                "method",
                "select_by",
            )
        ),
        ([f"lora search.steps={'9' * 250}"], {}, r"a folder with too long a name"),
        (["loar"], {}, r"method='loar'"),
        (["lora"], {"rates": [0.0]}, r"expected different factors above 0"),
        (["lora"], {"rates": [1.0, 1.0000001]}, r"expected different factors above 0"),
        (["lora"], {"rates": [1.0, float("inf")]}, r"expected different factors above 0"),
        (["lora"], {"folds": 3}, r"folds takes the test rows from the train file"),
        (["lora"], {"reference": "dora"}, r"--reference 'dora': expected one of 'lora'"),
        (["lora"], {"folds": 3, "tuning_seeds": 1}, r"each fold chooses by its own selection rows"),
    ],
)
def test_plan_that_cannot_be_is_refused(
    methods: list[str], options: dict[str, Any], message: str, make_recipe: Make
) -> None:
    with pytest.raises(BiDoRAError, match=message):
        make_plan(make_recipe(), [], methods, seeds=1, **options)


def test_rates_need_rows_to_choose_by(make_recipe: Make) -> None:
    recipe = make_recipe(data__selection_fraction=0.0, select_best=False)
    assert make_plan(recipe, [], ["lora"], seeds=1).runs == 1
    with pytest.raises(RecipeError, match=r"--rates: there are no selection rows to choose by"):
        make_plan(recipe, [], ["lora"], seeds=1, rates=[1.0, 2.0])


def test_faults_of_all_methods_are_told_at_once(make_recipe: Make) -> None:
    with pytest.raises(BiDoRAError, match=r"search\.lower_steps=0") as caught:
        make_plan(make_recipe(), [], ["bidora search.lower_steps=0", "lora adapter.rank=0"], seeds=1)
    assert any("adapter.rank=0" in fault for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("push_to_hub=owner/name", "push_to_hub is of a single run"),
        ("report_to=[tensorboard]", "report_to is of a single run"),
    ],
)
def test_recipe_that_cannot_be_compared_is_refused(override: str, message: str, make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=message):
        make_plan(make_recipe(), [override], ["lora"], seeds=1)


def test_runs_of_all_seeds_are_scored_on_the_same_test_rows(make_recipe: Make) -> None:
    overrides = ["data.test=null", "data.test_fraction=0.2", "seed=5"]
    plan = make_plan(make_recipe(), overrides, ["lora", "dora"], seeds=3)
    splits = [prepare(setting.recipe).rows.split_hashes() for each in plan.variants for setting in each.settings]
    assert len({hashes["test"] for hashes in splits}) == 1
    assert len({hashes["lower"] for hashes in splits}) == 3
    chosen = make_plan(make_recipe(), [*overrides, "data.test_seed=9"], ["lora"], seeds=3).variants[0].settings
    assert {setting.recipe.data.test_seed for setting in chosen} == {9}


def test_faults_of_numbers_are_told_at_once(make_recipe: Make) -> None:
    with pytest.raises(BiDoRAError) as caught:
        make_plan(make_recipe(), [], ["loar", "loar"], seeds=0, tuning_seeds=4, rates=[0.0], reference="x")
    assert [fault.split(" ")[0] for fault in caught.value.faults] == [
        *("--seeds", "--tuning-seeds", "--reference", "--methods:", "--rates")
    ]


def test_notes_that_differ_in_their_numbers_alone_are_told_once(make_recipe: Make) -> None:
    rows = [{"text": f"film {i % 34}", "label": ("bad", "good")[i % 2]} for i in range(80)]
    recipe = make_recipe(train=rows, test=rows[:12])
    assert any(prepare(load_recipe(recipe)).rows.notes)
    notes = make_plan(recipe, [], ["lora"], seeds=6).notes
    assert len({NUMBER.sub("#", note) for note in notes}) == len(notes)


def test_metric_is_that_of_the_recipe_and_of_its_task(make_recipe: Make) -> None:
    assert make_plan(make_recipe(select_by="f1_macro"), [], ["lora"], seeds=1).metric == "f1_macro"
    rows = [{"text": f"good film {i}", "label": i / 7} for i in range(40)]
    recipe = make_recipe(train=rows, test=rows[:12], task="regression", select_by="mse")
    assert make_plan(recipe, [], ["lora"], seeds=1).lower_is_better


def test_every_seed_is_checked(make_recipe: Make) -> None:
    rows = [{"text": f"film {i}", "label": ("a", "b", "c")[min(2, i % 18)]} for i in range(54)]
    # Of some seeds the rare classes are not in every split.
    with pytest.raises(BiDoRAError, match="class"):
        make_plan(make_recipe(train=rows, test=rows[:12]), ["data.upper_fraction=0.05"], ["lora"], seeds=4)


def test_values_in_brackets_may_hold_blanks(make_recipe: Make) -> None:
    plan = make_plan(make_recipe(), [], ["lora adapter.target_modules=[query, value]"], seeds=1)
    assert plan.variants[0].settings[0].recipe.adapter.target_modules == ["query", "value"]


@pytest.mark.parametrize("seeds", [0, -1])
def test_no_seeds_are_refused(seeds: int, make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=rf"--seeds {seeds}: expected a number from 1 up"):
        make_plan(make_recipe(), [], ["lora"], seeds=seeds)


def test_learning_rates_of_a_method_are_its_own(make_recipe: Make) -> None:
    plan = make_plan(make_recipe(), [], ["lora", "lora retrain.learning_rate=1e-4"], seeds=1, rates=[1.0, 0.5])
    rates = [setting.recipe.retrain.learning_rate for variant in plan.variants for setting in variant.settings]
    assert rates == [5e-3, 2.5e-3, 1e-4, 5e-5]


def test_methods_share_selection_and_test_rows_and_the_label(make_recipe: Make, tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": "ab"[i % 2], "other": "ab"[i % 3 // 2]} for i in range(40)]
    recipe = make_recipe(train=rows, test=rows[:12])
    section = "data={train: train.jsonl, test: train.jsonl, text: text, label: label}"
    with pytest.raises(RecipeError, match=r"lora_.*rate=1,seed=0 has other selection or test rows"):
        make_plan(recipe, [], ["lora", f"lora {section}"], seeds=1)
    with pytest.raises(RecipeError, match=r"predicts the column 'other', the first method 'label'"):
        make_plan(recipe, [], ["lora", "lora data.label=other"], seeds=1)
    assert make_plan(recipe, [], ["lora", "bidora data.upper_fraction=0.4"], seeds=2).runs == 4


def test_seeds_after_the_first_are_checked_too(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(recipe: Any) -> Any:
        if recipe.seed == 2:
            raise BiDoRAError("of this seed alone")
        return prepare(recipe)

    monkeypatch.setattr(plan_module, "prepare", refuse)
    assert make_plan(make_recipe(), [], ["lora"], seeds=2).runs == 2
    with pytest.raises(BiDoRAError, match="of this seed alone"):
        make_plan(make_recipe(), [], ["lora"], seeds=3)
