"""The command `peft-bidora`: a few lines a command; what is heavy is imported inside."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from peft_bidora import cli_study, launched
from peft_bidora.cli_options import (
    AsJson,
    AtOnce,
    Overrides,
    RecipePath,
    announce,
    interruptible,
    require_one_process,
)
from peft_bidora.display import print_errors, print_evaluation, print_json, print_outlook, print_run, row_progress
from peft_bidora.errors import BiDoRAError, Faults, ProcessError, RecipeError
from peft_bidora.quiet import quiet_libraries

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune a pretrained model with BiDoRA, DoRA, LoRA or in full, by a recipe.",
)
app.command()(cli_study.compare)
app.command()(cli_study.tune)
app.command()(cli_study.report)


@app.callback()
def common(context: typer.Context) -> None:
    """Let several processes train, and nothing else: all would write the same files."""
    if context.invoked_subcommand != "train":
        require_one_process(str(context.invoked_subcommand))
        context.with_resource(launched.fsdp())  # which is of several


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on with the killed run in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the run in the output folder.")] = False,
    lanes: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=LIST", help="Train every combination, side by side: seed=0..15 or method=lora,dora."),
    ] = None,
    at_once: AtOnce = None,
    as_json: AsJson = False,
) -> None:
    """Train by a recipe and score the test rows."""
    from peft_bidora.recipe.load import load_recipe

    if resume and overwrite:
        raise RecipeError("--resume goes on with a run and --overwrite deletes it; expected one of them.")
    if lanes:
        require_one_process("--lanes")
        options = {"resume": resume, "overwrite": overwrite, "at_once": at_once}
        with launched.fsdp():
            cli_study.train_lanes(recipe, overrides or (), lanes, as_json, **options)
        return
    if at_once is not None:
        raise RecipeError("--at-once is of lanes; expected --lanes beside it.")
    loaded = load_recipe(recipe, overrides or ())
    quiet_libraries()
    from peft_bidora.recipe.run import run

    with interruptible():
        metrics = run(loaded, resume=resume, overwrite=overwrite, announce=announce)
    from peft_bidora.training import ranks

    ranks.leave()
    if not launched.is_first():
        return
    from peft_bidora.report.model_card import push_to_hub, write_model_card

    write_model_card(loaded.output)
    if as_json:
        print_json(metrics)
    else:
        print_run(loaded.output, metrics)
    if loaded.push_to_hub is not None:
        announce(f"pushed to {push_to_hub(loaded.output, loaded.push_to_hub)}")


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    time: Annotated[bool, typer.Option(help="Load the weights and time three steps of each phase.")] = False,
    as_json: AsJson = False,
) -> None:
    """Report every fault of a recipe and its data at once, and what the run will take; load no weights."""
    from peft_bidora.recipe.load import dump_recipe, read_recipe

    loaded, unknown = read_recipe(recipe, overrides or ())
    quiet_libraries()
    from peft_bidora.recipe.capabilities import capabilities
    from peft_bidora.recipe.folder import check_output, is_run
    from peft_bidora.recipe.outlook import outlook, time_steps
    from peft_bidora.recipe.prepare import prepare

    faults = Faults()
    if unknown:
        faults.add(RecipeError(*unknown))
    prepared = faults.check(prepare, loaded)
    faults.check(check_output, loaded.output, resume=False, overwrite=True)
    faults.raise_any()
    assert prepared is not None
    report, notes = {**outlook(prepared), "goes_with": capabilities(prepared)}, list(prepared.rows.notes)
    if is_run(loaded.output):
        notes.append(
            f"output={loaded.output} holds a run already: train needs --resume, --overwrite or another output."
        )
    if time:
        from peft_bidora.recipe.run import make_trainer

        report["seconds"] = time_steps(prepared, make_trainer)
    if as_json:
        resolved = prepared.recipe.model_dump(mode="json", by_alias=True)
        print_json({"recipe": resolved, **report, "task": prepared.rows.task.state(), "notes": notes})
        return
    typer.echo(dump_recipe(prepared.recipe))
    print_outlook(report)
    for note in notes:
        typer.echo(f"note: {note}")
    typer.echo("No faults found.")


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or a folder of labelled rows.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RECIPE", help="The recipe to write.")] = Path(
        "recipe.yaml"
    ),
    overwrite: Annotated[bool, typer.Option(help="Replace the recipe that is there.")] = False,
) -> None:
    """Write a commented recipe for the task that a data file is for."""
    from peft_bidora.recipe.suggest import suggest_recipe

    if output.exists() and not overwrite:
        raise RecipeError(f"{output} exists already. Replace it by --overwrite, or name another by -o.")
    text, task = suggest_recipe(data)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"{output}: a recipe for {task}. Look at it, then: peft-bidora check {output}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="A labelled file; the run's test rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a finished run on its test rows or on another file."""
    quiet_libraries()
    from peft_bidora.recipe.finished import evaluate as evaluate_run

    evaluation = evaluate_run(run, data)
    for note in evaluation.notes if data is not None else ():
        announce(note)
    if as_json:
        print_json({**evaluation.scores, "details": evaluation.details})
        return
    title = f"{evaluation.method} on {evaluation.rows} rows of {'the test split' if data is None else data}"
    print_evaluation(title, evaluation.scores, evaluation.details)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    data: Annotated[str, typer.Argument(metavar="INPUT", help="Rows to predict; - for JSON Lines on standard input.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="A .jsonl, .csv, .tsv or .parquet; - for JSON Lines.")
    ] = "-",
    batch_size: Annotated[int, typer.Option(help="Rows a pass.", min=1)] = 64,
    overwrite: Annotated[bool, typer.Option(help="Replace the file that is there.")] = False,
) -> None:
    """Predict the rows of a file of any size; keep their columns and add the predictions."""
    quiet_libraries()
    from peft_bidora.recipe.predict import predict_file

    target = sys.stdout.buffer if output == "-" else Path(output)
    try:
        with row_progress() as progress:
            rows = predict_file(run, data, target, batch_size=batch_size, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        where = f"{target}.partial" if isinstance(target, Path) else "standard output"
        typer.echo(f"interrupted; the rows so far, if any, are in {where}", err=True)
        raise typer.Exit(130) from None
    if isinstance(target, Path):
        typer.echo(f"{target}: {rows:,} rows", err=True)


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to make.")],
    as_lora: Annotated[bool, typer.Option(help="Make a LoRA adapter, for servers that know no DoRA.")] = False,
    rank: Annotated[int | None, typer.Option(help="Its rank.", min=1)] = None,
    dtype: Annotated[str, typer.Option(help="Of the merged weights: float32 or bfloat16.")] = "float32",
    overwrite: Annotated[bool, typer.Option(help="Replace what is in the output folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the weights of a run merged, to serve them without PEFT."""
    if as_lora != (rank is not None):
        raise RecipeError("--as-lora and --rank go together; expected both or none of them.")
    quiet_libraries()
    from peft_bidora.recipe.merge import merge as merge_run

    merged = merge_run(run, output, lora_rank=rank, dtype=dtype, overwrite=overwrite)
    if as_json:
        report = {"folder": str(merged.folder), "rows": merged.rows, "difference": merged.difference}
        print_json({**report, "errors": merged.errors, "reading": merged.reading})
        return
    if merged.errors:
        print_errors(merged.errors)
    typer.echo(f"{'LoRA adapter' if as_lora else 'merged weights'}  {merged.folder}")
    typer.echo(f"logits of {merged.rows} test rows differ by at most {merged.difference:.3g} from the run's")
    if merged.reading:
        typer.echo("\n".join(["", "Read its predictions:", *(f"  {line}" for line in merged.reading)]))


def main() -> None:
    """Run the command line; an error of ours, or of the system, is one line a fault on standard error, and code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is escaped, and ends no run
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except BiDoRAError as error:
        # All processes of a run have one error and one of them tells it, unless they lost each other.
        faults = list(error.faults) if isinstance(error, ProcessError) or _speaks() else []
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        faults = [f"{where}{error.strerror or error}. Correct the path, its permissions or the disk."]
    else:
        return
    for fault in faults:
        typer.echo(f"error: {fault}", err=True)
    sys.exit(2)


def _speaks() -> bool:
    try:
        return launched.is_first()
    except RecipeError:  # whose message this is
        return True


if __name__ == "__main__":
    main()
