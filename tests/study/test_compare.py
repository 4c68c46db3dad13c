"""A comparison as a whole: its runs are those of single commands, it outlives kills, and bad input loses nothing."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from peft_bidora.errors import BiDoRAError, CheckpointError, InUseError, NonFiniteError, RecipeError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.run import run
from peft_bidora.study import compare as compare_module
from peft_bidora.study.compare import compare, read_comparison
from peft_bidora.study.jobs import Job
from peft_bidora.study.plan import Plan, make_plan

Make = Callable[..., Path]


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run jobs in this process; return the labels of those that were."""
    begun: list[str] = []

    def run_inline(jobs: Sequence[Job], at_once: int, watch: Any) -> dict[str, BiDoRAError]:
        failed = {}
        for job in jobs:
            begun.append(job.label)
            try:
                job.work(lambda *event, label=job.label: watch(label, *event), *job.arguments)
            except BiDoRAError as error:
                failed[job.label] = error
        return failed

    monkeypatch.setattr(compare_module, "run_jobs", run_inline)
    return begun


def planned(recipe: Path, methods: Sequence[str] = ("lora", "bidora", "full"), **options: Any) -> Plan:
    return make_plan(recipe, [], methods, **{"seeds": 2, **options})


def test_comparison_has_the_metrics_of_the_runs_alone(make_recipe: Make, tmp_path: Path, inline: list[str]) -> None:
    recipe = make_recipe()
    told: list[tuple[Any, ...]] = []
    result = compare(planned(recipe, rates=(1.0, 0.5)), watch=lambda *event: told.append(event))

    assert inline[:2] == ["lora", "bidora"]
    assert len(inline) == 2 + 4  # a job for each run that is trained in full
    assert [method["label"] for method in result["methods"]] == ["lora", "bidora", "full"]
    assert {event[1] for event in told if event[0] == "bidora"} == {"search", "retrain", "scoring"}
    for method in result["methods"]:
        for each in method["runs"]:
            factor = float(each["rate"])
            rates = [f"{key}={value * factor}" for key, value in (
                ("retrain.learning_rate", 5e-3), ("search.learning_rate", 5e-3), ("search.upper_learning_rate", 2e-2)
            )]  # fmt: skip
            names = [f"method={method['label']}", f"seed={each['seed']}", f"output={tmp_path / 'alone'}"]
            alone = run(load_recipe(recipe, [*rates, *names]), overwrite=True)
            # Lanes draw other masks of dropout than a run alone.
            tolerance = 0.5 if method["label"] != "full" else 0
            assert each["test"]["accuracy"] == pytest.approx(alone["test"]["accuracy"]["value"], abs=tolerance)
            assert each["trainable_parameters"] == alone["trainable_parameters"]
            assert (tmp_path / "run" / each["folder"] / "metrics.json").is_file()
    assert read_comparison(tmp_path / "run") == json.loads(json.dumps(result))


def test_resumed_comparison_keeps_what_is_finished_and_ends_the_same(
    make_recipe: Make, tmp_path: Path, inline: list[str]
) -> None:
    plan = planned(make_recipe())
    whole = compare(plan)
    del inline[:]
    kept = tmp_path / "run/bidora/rate=1,seed=0/metrics.json"
    before = kept.stat().st_mtime_ns
    (tmp_path / "run/bidora/rate=1,seed=1/metrics.json").unlink()
    (tmp_path / "run/full/rate=1,seed=0/metrics.json").unlink()
    (tmp_path / "run/comparison.json").unlink()
    with pytest.raises(CheckpointError, match="holds a comparison that is not finished"):
        read_comparison(tmp_path / "run")
    told: list[tuple[Any, ...]] = []
    again = compare(plan, resume=True, watch=lambda *event: told.append(event))

    assert told[0] == ("lora", "done", 1, 1, [])
    assert inline == ["bidora", "full rate=1,seed=0"]
    assert kept.stat().st_mtime_ns == before
    for one, other in zip(whole["methods"], again["methods"], strict=True):
        assert one["values"] == other["values"] or one["label"] == "bidora"  # alone it drew other masks than beside


def test_resumed_comparison_takes_more_methods_and_seeds(make_recipe: Make, inline: list[str]) -> None:
    recipe = make_recipe()
    first = compare(planned(recipe, ("lora",), seeds=1))
    more = compare(planned(recipe, ("lora", "dora"), seeds=2), resume=True)

    assert more["methods"][0]["values"][0] == first["methods"][0]["values"][0]
    assert [len(method["values"]) for method in more["methods"]] == [2, 2]


def test_comparison_that_is_there_is_replaced_only_where_asked(
    make_recipe: Make, tmp_path: Path, inline: list[str]
) -> None:
    recipe = make_recipe()
    compare(planned(recipe, ("lora", "dora"), seeds=1))
    with pytest.raises(RecipeError, match=r"holds a study already\. Go on with it by --resume"):
        compare(planned(recipe, ("lora",), seeds=1))
    compare(planned(recipe, ("lora",), seeds=2), overwrite=True)
    assert not (tmp_path / "run/dora/rate=1,seed=0").exists()
    assert (tmp_path / "run/lora/rate=1,seed=1/metrics.json").is_file()
    with pytest.raises(CheckpointError, match=r"has folds=None, not 3"):
        compare(make_plan(recipe, ["data.test=null"], ["lora"], seeds=2, folds=3), resume=True)


def test_folds_give_every_row_of_the_file_once_a_seed(make_recipe: Make, tmp_path: Path, inline: list[str]) -> None:
    plan = make_plan(make_recipe(), ["data.test=null"], ["lora", "dora"], seeds=1, folds=4)
    result = compare(plan)

    tested = [
        json.loads(line)["text"]
        for fold in range(4)
        for line in (tmp_path / f"run/lora/rate=1,seed=0,fold={fold}/predictions.jsonl").read_text().splitlines()
    ]
    train = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert sorted(tested) == sorted(train)
    assert result["methods"][1]["against_reference"]["test"] == "corrected resampled t"


def test_method_that_fails_leaves_the_others_and_is_told(
    make_recipe: Make, tmp_path: Path, inline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise BiDoRAError("no room")

    plan = planned(make_recipe(), ("full", "lora"), seeds=1)
    monkeypatch.setattr(compare_module, "_train_alone", fail)
    with pytest.raises(BiDoRAError, match=r"no room\n.*same command with --resume"):
        compare(plan)
    assert (tmp_path / "run/lora/rate=1,seed=0/metrics.json").is_file()


def test_comparison_in_processes_of_their_own_is_the_same(make_recipe: Make, tmp_path: Path) -> None:
    plan = planned(make_recipe(), ("lora", "dora"), seeds=1)
    result = compare(plan, jobs=2)

    assert [len(method["values"]) for method in result["methods"]] == [1, 1]
    assert result["methods"][1]["against_reference"]["p"] is None


def test_resumed_comparison_refuses_another_recipe(make_recipe: Make, tmp_path: Path, inline: list[str]) -> None:
    recipe = make_recipe()
    compare(planned(recipe, ("lora", "full"), seeds=1))
    changed = make_plan(recipe, ["retrain.steps=6"], ["lora", "full"], seeds=1)
    with pytest.raises(CheckpointError, match=r"retrain\.steps was 4 and is 6"):
        compare(changed, resume=True)
    assert (tmp_path / "run/comparison.json").is_file()


def test_replaced_comparison_leaves_reports_and_runs_of_others_alone(
    make_recipe: Make, tmp_path: Path, inline: list[str]
) -> None:
    recipe = make_recipe()
    compare(planned(recipe, ("lora", "full"), seeds=1))
    (tmp_path / "run/comparison.html").write_text("old")
    (tmp_path / "run/lora/rate=1,seed=0/report.html").write_text("old")
    mine = run(load_recipe(recipe, [f"output={tmp_path / 'run/lora/mine'}", "method=lora"]))
    with pytest.raises(BiDoRAError, match="files that are no run"):  # and nothing of it is touched
        compare(planned(recipe, ("lora",), seeds=1), overwrite=True)
    assert not (tmp_path / "run/comparison.html").exists()
    assert json.loads((tmp_path / "run/lora/mine/metrics.json").read_text())["test"] == mine["test"]
    shutil.rmtree(tmp_path / "run/lora/mine")
    compare(planned(recipe, ("lora",), seeds=1), overwrite=True)
    assert not (tmp_path / "run/full/rate=1,seed=0").exists()


def test_full_run_that_diverges_counts_as_the_worst_rate(
    make_recipe: Make, inline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(recipe: Any, **options: Any) -> Any:
        if recipe.retrain.learning_rate > 1:
            recipe.output.mkdir(parents=True)
            raise NonFiniteError("the training loss is nan")
        return run(recipe, **options)

    monkeypatch.setattr(compare_module, "run", diverge)
    result = compare(planned(make_recipe(), ("full",), seeds=1, rates=(1.0, 1e30)))
    assert result["methods"][0]["rate"] == 1.0
    assert [each["stopped"] for each in result["methods"][0]["runs"]] == [False, True]


def test_first_seeds_choose_the_rate_that_the_others_are_trained_at(
    make_recipe: Make, tmp_path: Path, inline: list[str]
) -> None:
    plan = planned(make_recipe(), ("lora", "full"), seeds=3, rates=(1.0, 0.5), tuning_seeds=1)
    result = compare(plan)

    assert plan.runs == 2 * (2 + 2)
    assert inline[:3] == ["lora", "full rate=1,seed=0", "full rate=0.5,seed=0"]
    assert inline[3] == "lora"
    assert len(inline) == 3 + 3
    for method in result["methods"]:
        assert len(method["values"]) == 3
        assert {run["seed"] for run in method["runs"] if run["rate"] != f"{method['rate']:g}"} == {"0"}
    del inline[:]
    assert compare(plan, resume=True) == result
    assert inline == []
    more = compare(
        planned(make_recipe(), ("lora", "full"), seeds=4, rates=(1.0, 0.5, 0.25), tuning_seeds=1), resume=True
    )
    assert [len(method["values"]) for method in more["methods"]] == [4, 4]


def test_rate_is_chosen_anew_where_a_later_seed_is_stopped(
    make_recipe: Make, inline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = 0.0

    def diverge(recipe: Any, **options: Any) -> Any:
        if recipe.seed == 1 and recipe.retrain.learning_rate == best:
            recipe.output.mkdir(parents=True)
            raise NonFiniteError("the training loss is nan")
        return run(recipe, **options)

    recipe = make_recipe()
    first = compare(planned(recipe, ("full",), seeds=1, rates=(1.0, 0.5)))["methods"][0]
    best = first["learning_rates"]["retrain.learning_rate"]
    monkeypatch.setattr(compare_module, "run", diverge)
    found = compare(planned(recipe, ("full",), seeds=2, rates=(1.0, 0.5), tuning_seeds=1), resume=True)["methods"][0]
    assert found["rate"] != first["rate"]
    assert len(found["values"]) == 2


@pytest.mark.parametrize("number", [0, 3])
def test_seeds_that_choose_are_some_of_the_seeds(number: int, make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=rf"--tuning-seeds {number}: expected a number from 1 to --seeds, 2\."):
        planned(make_recipe(), ("lora",), rates=(1.0, 0.5), tuning_seeds=number)


def test_comparison_goes_on_with_no_fewer_runs_than_it_began_with(
    make_recipe: Make, tmp_path: Path, inline: list[str]
) -> None:
    recipe = make_recipe()
    compare(planned(recipe, ("lora",), seeds=1, rates=(1.0, 0.5)))
    with pytest.raises(CheckpointError, match=r"has the run lora/rate=0\.5,seed=0 too"):
        compare(planned(recipe, ("lora",), seeds=2), resume=True)
    assert (tmp_path / "run/comparison.json").is_file()


@pytest.mark.parametrize("options", [{"jobs": 0}, {"at_once": 0}])
def test_numbers_below_one_are_refused(options: dict[str, int], make_recipe: Make, inline: list[str]) -> None:
    with pytest.raises(RecipeError, match="expected numbers from 1 up"):
        compare(planned(make_recipe(), ("lora",), seeds=1), **options)


def test_method_that_another_process_took_a_moment_ago_is_waited_for(
    make_recipe: Make, inline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, calls = compare_module.run_jobs, []

    def taken_at_first(jobs: Sequence[Job], at_once: int, watch: Any) -> dict[str, BiDoRAError]:
        calls.append([job.label for job in jobs])
        return {"lora": InUseError("in use")} if len(calls) == 1 else alone(jobs, at_once, watch)

    monkeypatch.setattr(compare_module, "run_jobs", taken_at_first)
    assert len(compare(planned(make_recipe(), ("lora",), seeds=1))["methods"][0]["values"]) == 1
    assert calls == [["lora"], ["lora"]]
