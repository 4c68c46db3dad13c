"""What a comparison concludes from the metrics of its runs."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peft_bidora.errors import NonFiniteError
from peft_bidora.recipe.lane_settings import Setting
from peft_bidora.recipe.schema import Recipe
from peft_bidora.study.plan import Plan, Variant
from peft_bidora.study.statistics import holm, paired_folds, signed_rank_p
from peft_bidora.study.summary import require_rates, summarise


def recipe(method: str, rate: float) -> Recipe:
    values = {"retrain": {"learning_rate": rate}, "search": {"learning_rate": rate, "upper_learning_rate": 4 * rate}}
    return Recipe.model_validate(
        {"model": "builtin:minilm", "method": method, "data": {"train": "x"}, "output": "runs/x", **values}
    )


def plan(
    seeds: int, rates: tuple[float, ...] = (0.5, 1.0), methods: tuple[str, ...] = ("lora", "dora", "bidora")
) -> Plan:
    variants = tuple(
        Variant(
            method,
            tuple(
                Setting(f"{rate:g}/{seed}", {"rate": f"{rate:g}", "seed": str(seed)}, recipe(method, rate))
                for rate in rates
                for seed in range(seeds)
            ),
        )
        for method in methods
    )
    return Plan(Path("runs/x"), variants, methods[0], rates, tuple(range(seeds)), None, seeds, "accuracy", False)


def measured(selection: float, test: float) -> dict[str, Any]:
    cost = {"seconds": 10.0, "peak_memory_bytes": 2**20, "trainable_parameters": 7}
    cost["rows"] = {"lower": 60, "upper": 20, "selection": 40, "test": 16}
    return {"selection": {"accuracy": {"value": selection}}, "test": {"accuracy": {"value": test}}, **cost}


def metrics(of: Plan, value: Any) -> dict[tuple[str, str], Any]:
    """`value(method, rate, seed)` -> what was measured."""
    return {
        (variant.label, setting.name): value(variant.label, setting.values["rate"], int(setting.values["seed"]))
        for variant in of.variants
        for setting in variant.settings
    }


def test_rate_is_chosen_on_selection_rows_and_never_on_test_rows() -> None:
    of = plan(3)
    found = summarise(
        of, metrics(of, lambda _, rate, seed: measured(0.9, 0.1) if rate == "0.5" else measured(0.2, 1.0))
    )

    assert [method["rate"] for method in found["methods"]] == [0.5] * 3
    assert found["methods"][0]["values"] == [0.1] * 3
    assert found["methods"][2]["learning_rates"] == {
        "retrain.learning_rate": 0.5,
        "search.learning_rate": 0.5,
        "search.upper_learning_rate": 2.0,
    }
    assert found["methods"][0]["learning_rates"] == {"retrain.learning_rate": 0.5}
    assert [run["chosen"] for run in found["methods"][0]["runs"]] == [True] * 3 + [False] * 3


def test_less_of_an_error_is_better() -> None:
    of = replace(plan(2), lower_is_better=True)
    found = summarise(of, metrics(of, lambda _, rate, seed: measured(float(rate), 0.5)))
    assert found["methods"][0]["rate"] == 0.5


def test_rate_with_a_run_that_was_stopped_is_the_worst() -> None:
    of = plan(2)
    found = summarise(
        of, metrics(of, lambda _, rate, seed: None if rate == "1" and seed else measured(float(rate), 0.5))
    )
    assert found["methods"][0]["rate"] == 0.5
    assert found["methods"][0]["selection_by_rate"] == {"0.5": 0.5, "1": None}
    with pytest.raises(NonFiniteError, match=r"bidora: at every rate a run was stopped"):
        summarise(of, metrics(of, lambda label, *_: None if label == "bidora" else measured(0.5, 0.5)))
    one = plan(2, rates=(1.0,))
    with pytest.raises(NonFiniteError, match=r"lora, dora, bidora"):
        summarise(one, metrics(one, lambda *_: None))


def test_differences_are_paired_by_seed_and_corrected_for_their_number() -> None:
    of = plan(6)
    lead = {"lora": 0.0, "dora": 0.01, "bidora": 0.02}
    jitter = [0.0, 0.003, -0.004, 0.001, 0.006, -0.002]
    test = lambda label, seed: 0.1 * seed + lead[label] + (jitter[seed] if label == "dora" else 0.0)  # noqa: E731
    found = summarise(of, metrics(of, lambda label, _, seed: measured(0.5, test(label, seed))))
    dora, bidora = (method["against_reference"] for method in found["methods"][1:])

    assert bidora["difference"] == pytest.approx(0.02)
    p = [signed_rank_p([test(label, seed) - test("lora", seed) for seed in range(6)]) for label in ("dora", "bidora")]
    assert [dora["p"], bidora["p"]] == p
    assert [dora["p_corrected"], bidora["p_corrected"]] == holm(p)
    other = summarise(
        replace(of, reference="bidora"), metrics(of, lambda label, _, seed: measured(0.5, test(label, seed)))
    )
    assert "against_reference" not in other["methods"][2]
    assert other["methods"][0]["against_reference"]["difference"] == pytest.approx(-0.02)


def test_folds_are_compared_by_the_corrected_t_test() -> None:
    of = plan(5, methods=("lora", "dora"))
    in_a_fold = [
        replace(each, settings=tuple(Setting(s.name, {**s.values, "fold": "0"}, s.recipe) for s in each.settings))
        for each in of.variants
    ]
    of = replace(of, variants=tuple(in_a_fold), folds=5)
    values = [0.01, 0.03, 0.02, 0.05, 0.01]
    found = summarise(of, metrics(of, lambda label, _, seed: measured(0.5, values[seed] if label == "dora" else 0.0)))
    expected = paired_folds(values, [0.0] * 5, 16 / 80)
    assert found["methods"][1]["against_reference"]["p"] == expected.p
    assert not any("same test rows" in note or "p-value" in note for note in found["notes"])
    assert any(note.startswith("Over folds each run has the rate") for note in found["notes"])


def test_few_seeds_are_told_to_prove_nothing() -> None:
    of = plan(3)
    few = summarise(of, metrics(of, lambda *_: measured(0.5, 0.5)))["notes"]
    assert few[0].startswith("With 3 seeds no p-value can be below 0.5")
    assert few[1].startswith("An interval of fewer than 10 pairs")
    of = plan(6, methods=("lora", "dora"))  # 2 of 64 signs, and one comparison
    assert not any("p-value" in each for each in summarise(of, metrics(of, lambda *_: measured(0.5, 0.5)))["notes"])
    of = plan(6)  # two comparisons
    assert any("p-value" in each for each in summarise(of, metrics(of, lambda *_: measured(0.5, 0.5)))["notes"])
    of = plan(10)
    assert len(summarise(of, metrics(of, lambda *_: measured(0.5, 0.5)))["notes"]) == 1


def test_cost_and_other_metrics_are_those_of_the_chosen_runs() -> None:
    of = plan(3)

    def value(_: str, rate: str, seed: int) -> dict[str, Any]:
        run = measured(0.9 if rate == "1" else 0.1, 0.5 + 0.1 * seed)
        run["test"]["f1"] = {"value": 0.2 * seed}
        factor = 1 if rate == "1" else 100
        return {**run, "seconds": factor * (10.0 + seed**3), "peak_memory_bytes": factor * (seed + 1)}

    method = summarise(of, metrics(of, value))["methods"][0]
    assert (method["seconds"], method["peak_memory_bytes"]) == (11.0, 3)
    assert method["standard_deviation"] == pytest.approx(0.1)
    assert method["others"]["f1"]["mean"] == pytest.approx(0.2)


def test_rate_counts_as_the_worst_where_any_run_was_stopped() -> None:
    of = plan(3, methods=("lora", "dora"))
    stopped = lambda label, rate, seed: rate == "1" and seed == 1  # noqa: E731
    found = summarise(of, metrics(of, lambda *key: None if stopped(*key) else measured(float(key[1]), 0.5)))
    assert [method["rate"] for method in found["methods"]] == [0.5, 0.5]


def test_rate_is_chosen_by_the_first_seeds_alone_where_few_choose() -> None:
    of = replace(plan(4, methods=("lora", "dora")), tuning_seeds=1)
    trained = {key: value for key, value in metrics(of, better_first).items() if trained_for(key[1], "1")}
    found = summarise(of, trained)

    assert [method["rate"] for method in found["methods"]] == [1.0, 1.0]
    assert found["methods"][0]["selection_by_rate"] == {"0.5": 0.5, "1": 1.0}
    assert found["methods"][0]["values"] == [0.7, 0.7, 0.7, 0.7]
    assert len(found["methods"][0]["runs"]) == 5
    assert found["notes"][0] == "The rates were chosen by the selection rows of 1 of 4 seeds."
    assert require_rates(of, trained) == {"lora": "1", "dora": "1"}
    stopped = {key: None if key[1] == "1/2" else value for key, value in trained.items()}
    assert require_rates(of, stopped) == {"lora": "0.5", "dora": "0.5"}  # whose other seeds are then to be trained


def better_first(_: str, rate: str, seed: int) -> dict[str, Any]:
    """Seed 0 is better at the higher rate, the others are better at the lower."""
    return measured(float(rate) if seed == 0 else -float(rate), 0.7)


def trained_for(name: str, chosen: str) -> bool:
    rate, seed = name.split("/")
    return seed == "0" or rate == chosen


def test_folds_choose_by_their_own_selection_rows() -> None:
    of = plan(2, methods=("lora", "dora"))
    variants = tuple(replace(variant, settings=tuple(with_folds(variant.settings))) for variant in of.variants)
    of = replace(of, variants=variants, folds=2)

    def value(_: str, rate: str, fold: int) -> dict[str, Any]:
        best = "1" if fold == 0 else "0.5"
        return measured(0.9 if rate == best else 0.1, 1.0 if rate == best else 0.0)

    found = {
        (variant.label, setting.name): value(variant.label, setting.values["rate"], int(setting.values["fold"]))
        for variant in of.variants
        for setting in variant.settings
    }
    lora = summarise(of, found)["methods"][0]
    assert lora["values"] == [1.0] * 4
    chosen = {(run["seed"], run["fold"], run["rate"]) for run in lora["runs"] if run["chosen"]}
    assert chosen == {(seed, fold, rate) for seed in "01" for fold, rate in (("0", "1"), ("1", "0.5"))}
    stopped = {key: None if key[0] == "lora" and key[1].endswith("0/1") else each for key, each in found.items()}
    with pytest.raises(NonFiniteError, match="lora"):
        summarise(of, stopped)


def with_folds(settings: Any) -> Any:
    for setting in settings:
        for fold in ("0", "1"):
            yield Setting(f"{setting.name}/{fold}", {**setting.values, "fold": fold}, setting.recipe)


def test_run_without_a_test_metric_counts_as_stopped() -> None:
    of = plan(2)
    nothing = {**measured(0.9, 0.5), "test": {"accuracy": {"value": None}}}
    found = summarise(of, metrics(of, lambda _, rate, seed: nothing if rate == "1" else measured(0.1, 0.5)))
    assert [method["rate"] for method in found["methods"]] == [0.5] * 3
    assert found["methods"][0]["selection_by_rate"]["1"] is None


@pytest.mark.parametrize(
    ("selection", "told"), [(8, r"chosen on 8 selection rows"), (81, r"81 selection rows are more"), (40, None)]
)
def test_rows_that_choose_are_told_where_they_are_few_or_more_than_the_others(selection: int, told: str | None) -> None:
    of = plan(10)
    run = measured(0.5, 0.5)
    run["rows"] = {**run["rows"], "selection": selection}
    notes = summarise(of, metrics(of, lambda *_: run))["notes"]
    assert any(re.search(told, note) for note in notes) if told else len(notes) == 1
