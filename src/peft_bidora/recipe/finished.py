"""A finished run: load its model, score and predict with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_bidora.adapter.export import load_adapter
from peft_bidora.adapter.held import hold_in_bfloat16
from peft_bidora.data.columns import Columns
from peft_bidora.data.examples import Examples
from peft_bidora.data.glue import labelled_test
from peft_bidora.data.source import read_table
from peft_bidora.data.table import Table
from peft_bidora.errors import BiDoRAError, CheckpointError
from peft_bidora.recipe import folder
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.loading import load_base_model
from peft_bidora.recipe.options import task_options
from peft_bidora.recipe.prepare import prepare, read_other
from peft_bidora.recipe.progress import progress_bar
from peft_bidora.recipe.schema import Recipe
from peft_bidora.tasks.base_model import load_tokenizer, resolve_model
from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.tasks.registry import find_task
from peft_bidora.tasks.task import Task, TaskKind
from peft_bidora.training.prediction import predict


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder says, without the data that it was trained on and without weights.

    Args:
        recipe: as resolved, its output the present folder.
        kind: of the task.
        task: bound to the train rows of the run.
        columns: of the train file.
        tokenizer: as saved beside the weights.
        max_length: the most tokens of a row.
    """

    recipe: Recipe
    kind: TaskKind
    task: Task
    columns: Columns
    tokenizer: Any
    max_length: int


def read_run(run_folder: Path) -> FinishedRun:
    """Return what a run folder says.

    Raises:
        CheckpointError: the folder holds no run, one that is not finished, or one that is damaged.
    """
    folder.require_run(run_folder)
    recipe = load_recipe(run_folder / folder.RECIPE).model_copy(update={"output": run_folder})
    if folder.is_open_lane(run_folder):
        raise CheckpointError(f"{run_folder} {folder.LANE_GOES_ON}")
    if not (run_folder / folder.METRICS).is_file():
        raise CheckpointError(
            f"{run_folder} holds a run that is not finished. Go on with it:"
            f" peft-bidora train {run_folder / folder.RECIPE} --resume"
        )
    said = folder.read_object(run_folder / folder.TASK, ("name", "state", "text", "label", "max_length"))
    kind = find_task(said["name"])
    try:
        task, columns = kind.restore(said["state"]), Columns(tuple(said["text"]), said["label"])
        max_length = int(said["max_length"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # whatever a wrong shape makes `restore` raise
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{run_folder / folder.TASK} is damaged: {reason}. {folder.DEFAULT_CURE}.") from error
    return FinishedRun(
        recipe=recipe,
        kind=kind,
        task=task,
        columns=columns,
        tokenizer=kind.tokenizer(load_tokenizer(str(folder.weights_folder(recipe)))),
        max_length=max_length,
    )


def load_trained(run: FinishedRun, *, unpacked: bool = False) -> Any:
    """Return the trained model of a run, on the device that there is.

    Args:
        run: what its folder says.
        unpacked: whether weights in few bits come in float32, as they are rounded.

    Raises:
        BiDoRAError: its weights, or those that it adapts, cannot be loaded.
    """
    import torch

    weights = folder.weights_folder(run.recipe)
    if run.recipe.method == "full":
        model = run.task.load_model(str(weights), run.tokenizer)
    else:
        base = load_base(run, unpacked=unpacked)
        try:
            model = load_adapter(weights, base)
            if run.recipe.base_dtype == "bfloat16" and not unpacked:
                hold_in_bfloat16(model)
        except BiDoRAError:
            raise
        except Exception as error:  # peft, safetensors and torch each raise types of their own
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"The adapter in {weights} cannot be loaded ({type(error).__name__}: {reason}). {folder.DEFAULT_CURE}."
            ) from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model if device is None else model.to(device)


def load_base(run: FinishedRun, *, unpacked: bool = False) -> Any:
    """Return the base model of a run, before it was adapted; args and errors as in `load_trained`."""
    recipe = run.recipe
    base = load_base_model(recipe, run.kind, run.task, resolve_model(recipe.model), run.tokenizer)
    return base.dequantize() if unpacked and recipe.quantization is not None else base


def predict_with(
    run: FinishedRun,
    model: Any,
    examples: Examples,
    progress: Callable[[int], Any] = lambda rows: None,
    batch_size: int | None = None,
) -> list[Any]:
    """Return the prediction of each row by the model of a run."""
    return predict(
        model,
        run.task,
        run.tokenizer,
        examples,
        max_length=run.max_length,
        batch_size=batch_size or run.recipe.eval_batch_size,
        bfloat16=run.recipe.precision == "bfloat16",
        progress=progress,
    )


@dataclass(frozen=True)
class Evaluation:
    """How a finished run does on labelled rows.

    Args:
        scores: value, low and high of each metric, the last two of its 95 % interval.
        details: what the task tells beyond its metrics.
        notes: what to know of the rows.
        method: of the run.
        rows: how many were scored.
    """

    scores: dict[str, dict[str, float]]
    details: dict[str, Any]
    notes: list[str]
    method: str
    rows: int


def evaluate(run_folder: Path, data: str | None = None) -> Evaluation:
    """Score a finished run on its test rows or on other labelled rows.

    Args:
        run_folder: what `run` wrote.
        data: as in `read_table`, with the columns of the training file; None for the run's own test rows.

    Raises:
        BiDoRAError: the folder is no finished run, the file is at fault, or the run's own files changed.
    """
    run = read_run(run_folder)
    if data is None:
        try:
            rows = prepare(run.recipe).rows
        except BiDoRAError as error:  # of files that were gone or changed
            raise type(error)(*error.faults, folder.name_the_rows(run_folder)) from error
        folder.check_same_rows(run_folder, rows)
        examples, notes = rows.parts["test"], rows.notes
    else:
        source, split, note = labelled_test(data)
        examples, notes = run.kind.scored(tabulated(run, read_table(source, split))), [note] if note else []
    with progress_bar(len(examples), "evaluate") as progress:
        predictions = predict_with(run, load_trained(run), examples, progress)
    labels = examples.required_labels()
    scores = scores_with_intervals(run.task, predictions, labels, run.recipe.seed)
    details = run.task.details(predictions, labels)
    return Evaluation(scores, details, notes, run.recipe.method, len(examples))


def tabulated(run: FinishedRun, table: Table) -> Examples:
    """Return the labelled rows of a table as examples of the run's task.

    Raises:
        DataError: columns are missing, or rows have faults.
    """
    layout = run.kind.layout(task_options(run.recipe), run.tokenizer)
    examples = read_other(run.kind.arrange(table), run.columns, layout)
    run.task.check(examples)
    return examples
