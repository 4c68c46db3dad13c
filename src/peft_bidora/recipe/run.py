"""A whole run: recipe in, run folder out."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import DataCollatorWithPadding, PrinterCallback, set_seed
from transformers.trainer_callback import ProgressCallback

from peft_bidora.adapter.attach import attach_adapter, head_modules
from peft_bidora.adapter.export import load_adapter, save_adapter
from peft_bidora.data.columns import require_columns, resolve_columns
from peft_bidora.data.examples import Examples, read_examples
from peft_bidora.data.labels import check_labels_known
from peft_bidora.data.source import read_table
from peft_bidora.recipe import folder
from peft_bidora.recipe.callbacks import EvaluateLastStep, PhaseProgress, Stopwatch
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.memory import peak_memory_bytes
from peft_bidora.recipe.options import adapter_options, baseline_arguments, bidora_arguments
from peft_bidora.recipe.prepare import Prepared, prepare
from peft_bidora.recipe.schema import Recipe
from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.trainer import BiDoRATrainer

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Train by a recipe, score the test rows once and write the run folder; return what its metrics.json holds.

    Args:
        recipe: the checked recipe.
        resume: go on with the killed run in `recipe.output`; a finished one is only reported.
        overwrite: replace the run in `recipe.output`, once the weights are loaded.
        announce: takes what a user should know before the training and may be content with.

    Raises:
        BiDoRAError: anything in recipe, data or model, before weights are loaded.
    """
    folder.check_output(recipe.output, resume=resume, overwrite=overwrite)
    prepared = prepare(recipe)
    manifest = folder.check_same_run(recipe, prepared.rows) if resume else None
    for note in prepared.rows.notes:
        announce(note)
    metrics_path = recipe.output / folder.METRICS
    if manifest is not None and metrics_path.is_file():
        announce("The run is finished already.")
        finished: dict[str, Any] = json.loads(metrics_path.read_text(encoding="utf-8"))
        return finished
    trainer = _make_trainer(prepared)
    manifest = manifest or folder.begin(recipe, prepared.rows)
    stopwatch = Stopwatch(recipe.output / "seconds.json")
    trainer.add_callback(stopwatch)
    trainer.train(resume_from_checkpoint=resume)
    return _finish(prepared, trainer, manifest, stopwatch.seconds())


def evaluate(run_folder: Path, data: str | None = None) -> dict[str, dict[str, float]]:
    """Return the test metrics with 95 % intervals of a finished run, on its test rows or on another file.

    Args:
        run_folder: what `run` wrote.
        data: a labelled file with the columns of the training file; None for the run's own test rows.

    Raises:
        BiDoRAError: the folder is no run, or the file is at fault.
    """
    folder.check_output(run_folder, resume=True, overwrite=False)
    prepared = prepare(load_recipe(run_folder / folder.RECIPE, [f"output={run_folder}"]))
    examples = prepared.rows.parts["test"] if data is None else _labelled(prepared, data)
    recipe = prepared.recipe
    if recipe.method == "full":
        model = prepared.task.load_model(str(run_folder / "model"), prepared.rows.names, prepared.tokenizer)
    else:
        base = prepared.task.load_model(prepared.source, prepared.rows.names, prepared.tokenizer)
        model = load_adapter(run_folder / "adapter", base)
    trainer = _baseline_trainer(prepared, model)
    output = trainer.predict(_encode(prepared, examples))
    return scores_with_intervals(prepared.task, output.predictions, output.label_ids, recipe.seed)


def _labelled(prepared: Prepared, data: str) -> Examples:
    section = prepared.recipe.data
    columns, _ = resolve_columns(read_table(section.train), section.text, section.label)
    table = read_table(data, "test")
    require_columns(table, columns)
    examples = read_examples(table, columns)
    check_labels_known(prepared.rows.names, examples)
    return examples


def _make_trainer(prepared: Prepared) -> ExactTrainer:
    recipe, task = prepared.recipe, prepared.task
    set_seed(recipe.seed)
    attention = "eager" if recipe.method == "bidora" and recipe.search.hypergradient == "exact" else None
    model = task.load_model(prepared.source, prepared.rows.names, prepared.tokenizer, attention)
    if recipe.method != "full":
        use_dora = recipe.method != "lora"
        model = attach_adapter(
            model, adapter_options(recipe), use_dora=use_dora, task_type=task.peft_type, head=head_modules(model)
        )
    if recipe.method != "bidora":
        return _baseline_trainer(prepared, model)
    lower, upper, selection = (_encode(prepared, prepared.rows.parts[name]) for name in ("lower", "upper", "selection"))
    return _prepare_callbacks(
        BiDoRATrainer(
            model=model,
            args=bidora_arguments(recipe, bool(selection)),
            train_dataset=lower,
            upper_dataset=upper,
            eval_dataset=selection,
            **_shared(prepared),
        )
    )


def _baseline_trainer(prepared: Prepared, model: Any) -> ExactTrainer:
    from datasets import concatenate_datasets

    parts = {name: _encode(prepared, part) for name, part in prepared.rows.parts.items() if len(part)}
    selection = parts.get("selection")
    return _prepare_callbacks(
        ExactTrainer(
            model=model,
            args=baseline_arguments(prepared.recipe, selection is not None),
            train_dataset=concatenate_datasets([parts[name] for name in ("lower", "upper") if name in parts]),
            eval_dataset=selection,
            **_shared(prepared),
        )
    )


def _shared(prepared: Prepared) -> dict[str, Any]:
    task = prepared.task
    return {
        "data_collator": DataCollatorWithPadding(prepared.tokenizer),
        "processing_class": prepared.tokenizer,
        "compute_loss_func": task.loss,
        "compute_metrics": lambda output: task.scores(output.predictions, output.label_ids),
    }


def _prepare_callbacks(trainer: ExactTrainer) -> ExactTrainer:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(EvaluateLastStep())
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(PhaseProgress())
    return trainer


def _encode(prepared: Prepared, examples: Examples) -> Any:
    if not len(examples):
        return None
    return prepared.task.encode(examples, prepared.tokenizer, prepared.rows.names, prepared.max_length)


def _finish(prepared: Prepared, trainer: ExactTrainer, manifest: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Save the adapter first, then score the test rows; metrics.json, written last, marks the run as finished."""
    recipe, task, output = prepared.recipe, prepared.task, prepared.recipe.output
    peak = peak_memory_bytes()
    if recipe.method == "full":
        trainer.model.save_pretrained(output / "model")
        prepared.tokenizer.save_pretrained(output / "model")
    else:
        save_adapter(trainer.model, output / "adapter")
        prepared.tokenizer.save_pretrained(output / "adapter")
    history = getattr(trainer, "log_history", None)
    if history is None:
        history = [{"phase": "retrain", **entry} for entry in trainer.state.log_history]
    folder.write_json_lines(output / "metrics.jsonl", history)
    scores = {}
    for name in ("selection", "test"):
        part = prepared.rows.parts[name]
        if not len(part):
            continue
        predicted = trainer.predict(_encode(prepared, part))
        scores[name] = scores_with_intervals(task, predicted.predictions, predicted.label_ids, recipe.seed)
        if name == "test":
            rows = task.prediction_rows(part, predicted.predictions, prepared.rows.names)
            folder.write_json_lines(output / "predictions.jsonl", rows)
    trainable, total = _parameters(trainer)
    metrics = {
        "method": recipe.method,
        **scores,
        "trainable_parameters": trainable,
        "parameters": total,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "rows": manifest["rows"],
        "model": prepared.source,
        "labels": prepared.rows.names,
    }
    device = str(trainer.args.device)
    folder.write_json(output / folder.MANIFEST, {**manifest, "device": device, "seconds": seconds})
    folder.write_json(output / folder.METRICS, metrics)
    return metrics


def _parameters(trainer: ExactTrainer) -> tuple[int, int]:
    """Trained and all parameters; magnitudes count as trained although the retrain phase froze them."""
    named = dict(trainer.model.named_parameters())
    levels = getattr(trainer, "levels", None)
    trained = {**levels.direction, **levels.magnitude} if levels else None
    if trained is None:
        trained = {
            name: p for name, p in named.items() if p.requires_grad or "lora_" in name or "modules_to_save" in name
        }
    return sum(p.numel() for p in trained.values()), sum(p.numel() for p in named.values())
