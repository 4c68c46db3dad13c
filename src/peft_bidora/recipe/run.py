"""A whole run: recipe in, run folder out."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from transformers import PrinterCallback, set_seed
from transformers.trainer_callback import ProgressCallback

from peft_bidora import launched
from peft_bidora.adapter.attach import attach_adapter, head_modules
from peft_bidora.adapter.held import hold_in_bfloat16
from peft_bidora.data.examples import Examples
from peft_bidora.recipe import folder
from peft_bidora.recipe.callbacks import EvaluateLastStep, PhaseProgress, ProgressLines, Stopwatch
from peft_bidora.recipe.finish import finish
from peft_bidora.recipe.loading import load_base_model
from peft_bidora.recipe.options import adapter_options, baseline_arguments, bidora_arguments
from peft_bidora.recipe.output import disk_faults, held, lost_processes
from peft_bidora.recipe.prepare import Prepared, prepare
from peft_bidora.recipe.schema import Recipe
from peft_bidora.recipe.sharding import divides_weights
from peft_bidora.tasks.logits import first_output
from peft_bidora.training import ranks
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.sharding import shard_base
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

    Of several processes, which torchrun or accelerate started, the first writes and announces.

    Args:
        recipe: the checked recipe.
        resume: go on with the killed run in `recipe.output`; a finished one is only reported.
        overwrite: replace the run in `recipe.output`, once the weights are loaded.
        announce: takes what a user should know before the training and may be content with.

    Raises:
        BiDoRAError: anything in recipe, data or model, before weights are loaded.
        ProcessError: another process of the run ended.
    """
    launched.refuse_others()
    with launched.fsdp() as options, ExitStack() as stack, lost_processes(recipe.output):
        ranks.join()

        def claim() -> None:
            folder.check_output(recipe.output, resume=resume, overwrite=overwrite)
            stack.enter_context(held(recipe.output))
            folder.check_output(recipe.output, resume=resume, overwrite=overwrite)  # another may have been quicker

        ranks.on_first(claim)
        return _run(recipe, resume, announce if ranks.rank() == 0 else lambda _: None, options)


def _run(recipe: Recipe, resume: bool, announce: Callable[[str], None], fsdp: dict[str, str] | None) -> dict[str, Any]:
    sharded = divides_weights(recipe, ranks.count(), fsdp)
    if fsdp is not None and not sharded:
        announce("FSDP is asked for and one process was started, which holds the whole weights.")
    prepared = ranks.together(lambda: prepare(recipe))
    manifest = ranks.on_first(lambda: folder.check_same_run(prepared.recipe, prepared.rows)) if resume else None
    for note in prepared.rows.notes:
        announce(note)
    metrics_path = recipe.output / folder.METRICS
    if manifest is not None and ranks.on_first(metrics_path.is_file):
        announce("The run is finished already.")
        cure = "Remove it: --resume then scores the run again"
        return ranks.on_first(lambda: folder.read_object(metrics_path, METRIC_KEYS, cure))
    model = ranks.together(lambda: load_model(prepared))
    if sharded:
        shard_base(model)
    trainer = ranks.together(lambda: make_trainer(prepared, model))
    with disk_faults(recipe.output, "--overwrite"):
        manifest = manifest or ranks.on_first(lambda: folder.begin(prepared))
    with disk_faults(recipe.output):
        stopwatch = Stopwatch(recipe.output / folder.SECONDS)
        trainer.add_callback(stopwatch)
        trainer.train(resume_from_checkpoint=resume)
        state = trainer.state
        kept = {"step": state.best_global_step or state.global_step, "of": state.global_step}
        return finish(prepared, trainer, manifest, stopwatch.seconds(), _history(trainer), kept)


def load_model(prepared: Prepared) -> Any:
    """Return the model of a run, its adapter attached.

    Raises:
        BiDoRAError: the weights cannot be loaded or adapted.
    """
    recipe, task = prepared.recipe, prepared.rows.task
    set_seed(recipe.seed)
    model = load_base_model(recipe, prepared.kind, task, prepared.source, prepared.tokenizer)
    if recipe.activation_checkpointing:
        # Its name before transformers 5.20 or so.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if recipe.method == "full":
        return model
    adapted = attach_adapter(
        model,
        adapter_options(recipe),
        use_dora=recipe.method != "lora",
        task_type=task.peft_type,
        head=head_modules(model),
    )
    if recipe.base_dtype == "bfloat16":
        hold_in_bfloat16(adapted)
    return adapted


def make_trainer(prepared: Prepared, model: Any = None) -> ExactTrainer:
    """Return the Trainer of a run.

    Args:
        prepared: the run.
        model: as `load_model` returns it; None to load it.

    Raises:
        BiDoRAError: as `load_model`.
    """
    recipe, task = prepared.recipe, prepared.rows.task
    model = load_model(prepared) if model is None else model
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
