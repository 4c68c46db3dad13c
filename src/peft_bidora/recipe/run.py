"""A whole run: recipe in, run folder out."""

import logging
from collections.abc import Callable
from typing import Any

from transformers import PrinterCallback, set_seed
from transformers.trainer_callback import ProgressCallback

from peft_bidora.adapter.attach import attach_adapter, head_modules
from peft_bidora.adapter.export import save_adapter
from peft_bidora.data.examples import Examples
from peft_bidora.recipe import folder
from peft_bidora.recipe.callbacks import EvaluateLastStep, PhaseProgress, ProgressLines, Stopwatch
from peft_bidora.recipe.loading import loading_options, packing
from peft_bidora.recipe.memory import peak_memory_bytes
from peft_bidora.recipe.options import adapter_options, baseline_arguments, bidora_arguments
from peft_bidora.recipe.output import disk_faults, held
from peft_bidora.recipe.prepare import Prepared, prepare
from peft_bidora.recipe.progress import progress_bar
from peft_bidora.recipe.schema import Recipe
from peft_bidora.tasks.base_model import load_config
from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.tasks.logits import first_output
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.prediction import predict
from peft_bidora.training.trainer import BiDoRATrainer

logger = logging.getLogger(__name__)

METRIC_KEYS = (
    *("method", "test", "test_details", "kept", "notes", "trainable_parameters", "parameters", "seconds"),
    *("peak_memory_bytes", "rows", "model", "loading_lines"),
)


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
    with held(recipe.output):
        folder.check_output(recipe.output, resume=resume, overwrite=overwrite)  # another process may have been quicker
        return _run(recipe, resume, announce)


def _run(recipe: Recipe, resume: bool, announce: Callable[[str], None]) -> dict[str, Any]:
    prepared = prepare(recipe)
    manifest = folder.check_same_run(prepared.recipe, prepared.rows) if resume else None
    for note in prepared.rows.notes:
        announce(note)
    metrics_path = recipe.output / folder.METRICS
    if manifest is not None and metrics_path.is_file():
        announce("The run is finished already.")
        return folder.read_object(metrics_path, METRIC_KEYS, "Remove it: --resume then scores the run again")
    trainer = make_trainer(prepared)
    with disk_faults(recipe.output, "--overwrite"):
        manifest = manifest or folder.begin(prepared)
    with disk_faults(recipe.output):
        stopwatch = Stopwatch(recipe.output / folder.SECONDS)
        trainer.add_callback(stopwatch)
        trainer.train(resume_from_checkpoint=resume)
        state = trainer.state
        kept = {"step": state.best_global_step or state.global_step, "of": state.global_step}
        return finish(prepared, trainer, manifest, stopwatch.seconds(), _history(trainer), kept)


def make_trainer(prepared: Prepared) -> ExactTrainer:
    """Return the Trainer of a run, its weights loaded and its adapter attached.

    Raises:
        BiDoRAError: the weights cannot be loaded or adapted.
    """
    recipe, task = prepared.recipe, prepared.rows.task
    set_seed(recipe.seed)
    loading = loading_options(recipe, prepared.kind, prepared.source)
    model = task.load_model(prepared.source, prepared.tokenizer, **loading)
    if recipe.activation_checkpointing:
        # Its name before transformers 5.20 or so.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if recipe.method != "full":
        use_dora = recipe.method != "lora"
        model = attach_adapter(
            model, adapter_options(recipe), use_dora=use_dora, task_type=task.peft_type, head=head_modules(model)
        )
    parts = {name: _dataset(prepared, part) for name, part in prepared.rows.parts.items() if name != "test"}
    selection = parts["selection"]
    shared: dict[str, Any] = {
        "model": model,
        "eval_dataset": selection,
        "data_collator": task.collator(prepared.tokenizer),
        "processing_class": prepared.tokenizer,
        "compute_loss_func": task.loss,
        "compute_metrics": _selection_scores(prepared) if task.has_logits else None,
        "preprocess_logits_for_metrics": first_output,
    }
    if recipe.method == "bidora":
        args = bidora_arguments(recipe, task, selection is not None)
        trainer = BiDoRATrainer(args=args, train_dataset=parts["lower"], upper_dataset=parts["upper"], **shared)
    else:
        args = baseline_arguments(recipe, task, selection is not None)
        trainer = ExactTrainer(args=args, train_dataset=_training_rows(parts), **shared)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(EvaluateLastStep())
    trainer.add_callback(ProgressLines() if trainer.pop_callback(ProgressCallback) is None else PhaseProgress())
    return trainer


def _selection_scores(prepared: Prepared) -> Callable[[Any], dict[str, float]]:
    """Score the selection rows, which Trainer reads in their order."""
    task, labels = prepared.rows.task, prepared.rows.parts["selection"].labels or []
    return lambda output: task.scores(task.decode(output.predictions, output.label_ids), labels)


def _training_rows(parts: dict[str, Any]) -> Any:
    from datasets import concatenate_datasets

    return concatenate_datasets([parts[name] for name in ("lower", "upper") if parts[name] is not None])


def _dataset(prepared: Prepared, examples: Examples) -> Any:
    from datasets import Dataset, concatenate_datasets

    parts: list[Any] = []
    for chunk in examples.chunks():
        columns = prepared.rows.task.encode(chunk, prepared.tokenizer, prepared.max_length)
        parts.append(Dataset.from_dict(columns, features=parts[0].features if parts else None))
    return concatenate_datasets(parts) if parts else None


def _history(trainer: ExactTrainer) -> list[dict[str, Any]]:
    """Return what was logged in all phases."""
    whole: list[dict[str, Any]] | None = getattr(trainer, "log_history", None)
    return [{"phase": "retrain", **entry} for entry in trainer.state.log_history] if whole is None else whole


def finish(
    prepared: Prepared,
    trainer: ExactTrainer,
    manifest: dict[str, Any],
    seconds: float,
    history: list[dict[str, Any]],
    kept: dict[str, int] | None,
    shown: bool = True,
) -> dict[str, Any]:
    """Save the adapter first, then score the test rows; metrics.json, written last, marks the run as finished.

    Args:
        prepared: the run.
        trainer: its model is the trained one.
        manifest: of the run folder.
        seconds: of training.
        history: what was logged.
        kept: the step whose checkpoint the model is, of how many; None for the last.
        shown: whether a bar shows the rows that are scored.
    """
    recipe, task, output = prepared.recipe, prepared.rows.task, prepared.recipe.output
    peak = peak_memory_bytes()
    weights = folder.weights_folder(recipe)
    if recipe.method == "full":
        trainer.model.save_pretrained(weights)
    else:
        save_adapter(trainer.model, weights)
    prepared.tokenizer.save_pretrained(weights)
    folder.write_json_lines(output / "metrics.jsonl", history)
    scores, details, notes = {}, {}, list[str]()
    for name in ("selection", "test"):
        part = prepared.rows.parts[name]
        if not len(part):
            continue
        with progress_bar(len(part), name, shown) as progress:
            predictions = predict(
                trainer.model,
                task,
                prepared.tokenizer,
                part,
                max_length=prepared.max_length,
                batch_size=recipe.eval_batch_size,
                bfloat16=recipe.precision == "bfloat16",
                progress=progress,
            )
        labels = part.required_labels()
        scores[name] = scores_with_intervals(task, predictions, labels, recipe.seed)
        if name == "test":
            details = task.details(predictions, labels)
            added = task.prediction_columns(predictions)
            notes = _sameness(added)
            rows = zip(part.rows, added, strict=True)
            folder.write_json_lines(output / "predictions.jsonl", ({**row, **extra} for row, extra in rows))
    trainable, total = _parameters(trainer)
    metrics = {
        "method": recipe.method,
        **scores,
        "test_details": details,
        "kept": kept,
        "notes": notes,
        "trainable_parameters": trainable,
        "parameters": total,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "rows": manifest["rows"],
        "model": prepared.source,
        "loading_lines": loading_lines(prepared),
    }
    device = str(trainer.args.device)
    folder.write_json(output / folder.MANIFEST, {**manifest, "device": device, "seconds": seconds})
    folder.write_json(output / folder.METRICS, metrics)
    return metrics


def _sameness(predicted: list[dict[str, Any]]) -> list[str]:
    """Tell where every row, or every word, was given the same label: a model that has learned nothing yet."""
    for key, what in (("predicted_label", "row"), ("predicted_tags", "word")):
        labels = [row[key] for row in predicted if key in row]
        given = {label for each in labels for label in ([each] if isinstance(each, str) else each)}
        if len(given) == 1 and len(labels) > 1:
            return [
                f"every test {what} is predicted to be {given.pop()!r}. Train longer, raise the learning rate, or see"
                " classification.class_weights."
            ]
    return []


def loading_lines(prepared: Prepared) -> list[str]:
    """Return the Python that loads the result of a run with stock PEFT and transformers alone, and reads it."""
    recipe, task = prepared.recipe, prepared.rows.task
    config = load_config(prepared.source)
    auto_class = prepared.kind.auto_class(config).__name__
    path = str(folder.weights_folder(recipe))
    if recipe.method == "full":
        imports = [f"from transformers import {auto_class}, AutoTokenizer"]
        load = f"model = {auto_class}.from_pretrained({path!r})"
    else:
        options = {} if task.outputs is None else {"num_labels": task.outputs}
        if config.pad_token_id != prepared.tokenizer.pad_token_id:
            options["pad_token_id"] = prepared.tokenizer.pad_token_id
        heads = [name for name in config.architectures or [] if name.endswith(auto_class.removeprefix("AutoModel"))]
        if heads and task.outputs not in (None, config.num_labels):  # the base model has another head, in the way
            options["ignore_mismatched_sizes"] = True
        auto_class = auto_class.replace("AutoModel", "AutoPeftModel")
        imports = [f"from peft import {auto_class}", "from transformers import AutoTokenizer"]
        arguments = [repr(path), *(f"{name}={value!r}" for name, value in options.items())]
        packed = packing(recipe, prepared.kind, prepared.source)
        # PEFT 0.21.2 loses the scales of 8 bits when it reads a DoRA layer over them.
        if packed is not None and (recipe.quantization == "4bit" or recipe.method == "lora"):
            told = ", ".join(f"{name}={value!r}" for name, value in packed.items())
            arguments.append(f"quantization_config=BitsAndBytesConfig({told})")
            imports.append("from transformers import BitsAndBytesConfig")
        load = f"model = {auto_class}.from_pretrained({', '.join(arguments)})"
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({path!r})"
    some_row = prepared.rows.parts["lower"].texts[0]
    return [*imports, load, tokenizer, *prepared.kind.reading(task.state(), some_row, prepared.tokenizer)]


def _parameters(trainer: ExactTrainer) -> tuple[int, int]:
    """Trained and all parameters; magnitudes count as trained although the retrain phase froze them."""
    named = dict(trainer.model.named_parameters())
    levels = getattr(trainer, "levels", None)
    trained = {**levels.direction, **levels.magnitude} if levels else None
    if trained is None:
        trained = {
            name: p for name, p in named.items() if p.requires_grad or "lora_" in name or "modules_to_save" in name
        }
    copied = ".original_module."  # PEFT keeps the untrained head beside the trained one
    return (
        sum(p.numel() for p in trained.values()),
        sum(p.numel() for name, p in named.items() if copied not in name),
    )
