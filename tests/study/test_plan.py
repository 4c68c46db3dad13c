"""What is compared: labels, rates, seeds and folds, and the faults of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_bidora.errors import BiDoRAError, RecipeError
from peft_bidora.study.plan import factors, labels, make_plan

Make = Callable[..., Path]


def test_commas_within_brackets_part_no_labels() -> None:
    assert labels("lora, bidora adapter.target_modules=[query,value],dora") == [
        "lora",
        "bidora adapter.target_modules=[query,value]",
        "dora",
    ]


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
        (["lora seed=3"], {}, r"seed=3 is the comparison's own"),
        (["loar"], {}, r"method='loar'"),
        (["lora"], {"rates": [0.0]}, r"expected different factors above 0"),
        (["lora"], {"rates": [1.0, 1.0]}, r"expected different factors above 0"),
        (["lora"], {"folds": 3}, r"folds takes the test rows from the train file"),
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


def test_rates_that_are_no_numbers_are_refused() -> None:
    assert factors("0.5,1") == [0.5, 1.0]
    with pytest.raises(RecipeError, match=r"--rates '1,x': expected factors with commas between"):
        factors("1,x")
