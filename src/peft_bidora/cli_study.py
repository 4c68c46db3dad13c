"""The commands of many runs: lanes, comparisons and their reports."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from peft_bidora.cli_options import (
    AsJson,
    AtOnce,
    Overrides,
    RecipePath,
    announce,
    interruptible,
)
from peft_bidora.display import print_json
from peft_bidora.display_study import (
    comparison_progress,
    lane_progress,
    print_comparison,
    print_lanes,
    print_trials,
    tell_trial,
)
from peft_bidora.errors import NonFiniteError, RecipeError
from peft_bidora.quiet import quiet_libraries


def train_lanes(recipe: Path, overrides: Sequence[str], lanes: Sequence[str], as_json: bool, **options: Any) -> None:
    """Train every combination of values side by side, and print a row for each."""
    quiet_libraries()
    from peft_bidora.recipe.lane_settings import load_settings
    from peft_bidora.recipe.load import load_recipe

    output, settings = load_recipe(recipe, overrides).output, load_settings(recipe, overrides, lanes)
    from peft_bidora.recipe.lanes import run_lanes
    from peft_bidora.report.model_card import write_model_card

    with interruptible(), lane_progress() as watch:
        outcomes = run_lanes(settings, output, announce=announce, watch=watch, **options)
    for outcome in outcomes:
        if outcome.metrics is not None:
            write_model_card(outcome.setting.recipe.output)
    if as_json:
        for outcome in outcomes:
            if outcome.stopped is not None:
                announce(f"{outcome.setting.name} was stopped: {outcome.stopped}")
        print_json([outcome.told() for outcome in outcomes])
    else:
        print_lanes(output, outcomes)
    if all(outcome.metrics is None for outcome in outcomes):
        raise NonFiniteError("Every lane was stopped, as told above. Lower the learning rates.")


def compare(
    recipe: RecipePath,
    overrides: Overrides = None,
    methods: Annotated[
        str, typer.Option(metavar="LIST", help="With commas between; each may have keys: bidora search.lower_steps=2.")
    ] = "lora,dora,bidora",
    seeds: Annotated[int, typer.Option(help="Runs of each method, from the recipe's seed up.", min=1, max=1000)] = 5,
    rates: Annotated[
        str, typer.Option(metavar="LIST", help="Factors on the learning rates; the best on selection rows is taken.")
    ] = "0.4,1,2.5",
    tuning_seeds: Annotated[
        int | None, typer.Option(help="So many seeds choose the rate; the others are trained at that one alone. All.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate: no test rows but folds.", min=2, max=100)] = None,
    reference: Annotated[str | None, typer.Option(help="What others are compared with; the first method.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes side by side, a method each.", min=1)] = 1,
    at_once: AtOnce = None,
    resume: Annotated[bool, typer.Option(help="Go on with the killed comparison in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the comparison in the output folder.")] = False,
    join: Annotated[bool, typer.Option(help="Help the process, on any machine, that began it in that folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare methods over seeds or folds, each at its best learning rate; write tables and a report."""
    if resume and overwrite:
        raise RecipeError("--resume goes on with a comparison and --overwrite deletes it; expected one of them.")
    if join and (resume or overwrite):
        raise RecipeError("--join helps with a comparison that is under way; expected no --resume or --overwrite.")
    quiet_libraries()
    from peft_bidora.study.compare import compare as compare_methods
    from peft_bidora.study.labels import factors, labels
    from peft_bidora.study.plan import make_plan

    listed = labels(methods)
    options: dict[str, Any] = {"seeds": seeds, "rates": factors(rates), "folds": folds, "tuning_seeds": tuning_seeds}
    plan = make_plan(recipe, overrides or (), listed, reference=reference, **options)

    def tell() -> None:
        for note in plan.notes:
            announce(note)
        parts = [f"{len(listed)} methods", f"{len(plan.rates)} rates", f"{seeds} seeds"]
        announce(f"{plan.runs:,} runs: {', '.join([*parts, *([f'{folds} folds'] if folds else [])])}")
        if jobs > (os.cpu_count() or 1):
            announce(f"--jobs {jobs} is more than the cores of this machine: they will wait for each other.")

    options = {"resume": resume, "overwrite": overwrite, "join": join, "jobs": jobs, "at_once": at_once}
    shown = [variant.label for variant in plan.variants if variant.side_by_side]  # the others' runs come by their names
    with interruptible(), comparison_progress(shown) as watch:
        result = compare_methods(plan, announce=tell, watch=watch, **options)
    from peft_bidora.report.html import write_report
    from peft_bidora.report.tables import write_csv

    write_csv(result, plan.output / "comparison.csv")
    write_report(plan.output)
    if as_json:
        print_json(result)
    else:
        print_comparison(plan.output, result)


def tune(
    recipe: RecipePath,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(help="In all, those before a kill among them.", min=1)] = 30,
    resume: Annotated[bool, typer.Option(help="Go on with the trials in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the trials in the output folder.")] = False,
    join: Annotated[
        bool, typer.Option(help="Help the process, on any machine, that began them in that folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Try learning rates, rank, K and upper fraction on the selection rows; write the best recipe."""
    if resume and overwrite:
        raise RecipeError("--resume goes on with trials and --overwrite deletes them; expected one of them.")
    if join and (resume or overwrite):
        raise RecipeError("--join helps with trials that are under way; expected no --resume or --overwrite.")
    quiet_libraries()
    from peft_bidora.study.tune import tune as tune_recipe

    with interruptible():
        options = {"resume": resume, "overwrite": overwrite, "join": join}
        result = tune_recipe(recipe, overrides or (), trials=trials, **options, watch=tell_trial)
    if as_json:
        print_json(result)
    else:
        print_trials(result)


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN|COMPARISON", help="The folder of either.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The HTML file; in the folder unless named.")
    ] = None,
) -> None:
    """Write what became of a run or a comparison as one HTML file, figures first."""
    quiet_libraries()
    from peft_bidora.report.html import write_report

    typer.echo(f"{write_report(folder, output)}")
