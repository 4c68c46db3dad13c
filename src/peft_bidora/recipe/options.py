"""From a recipe to the Trainer's arguments."""

import math
import sys
from typing import Any

import torch
from transformers import TrainingArguments

from peft_bidora.adapter.attach import AdapterOptions
from peft_bidora.errors import RecipeError
from peft_bidora.recipe.schema import GenerationSection, PhaseSection, Recipe
from peft_bidora.tasks.task import Task, TaskKind, TaskOptions
from peft_bidora.training import ranks
from peft_bidora.training.arguments import BiDoRAArguments


def adapter_options(recipe: Recipe) -> AdapterOptions:
    """Return the adapter's shape."""
    section = recipe.adapter
    return AdapterOptions(section.rank, section.alpha, section.dropout, section.target_modules)


def task_options(recipe: Recipe, config: Any = None) -> TaskOptions:
    """Return what the recipe and the model's configuration say of the task; without one, it is no encoder-decoder."""
    section = recipe.classification
    return TaskOptions(
        class_weights=section.class_weights,
        multi_label=section.multi_label,
        sequences=recipe.data.sequences,
        generation=recipe.generation.model_dump(exclude_none=True),
        encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
        seed=recipe.seed,
    )


def check_read(recipe: Recipe, kind: TaskKind) -> None:
    """Raise RecipeError for each key that is set although the task does not read it; one fault a key."""
    set_keys = {
        "classification.class_weights": recipe.classification.class_weights != "none",
        "classification.multi_label": bool(recipe.classification.multi_label),
        "data.sequences": recipe.data.sequences == "protein",
        "generation": recipe.generation != GenerationSection(),
    }
    faults = [
        f"{key} is set, which task={kind.name} does not read. Leave it out."
        for key, is_set in set_keys.items()
        if is_set and key not in kind.reads
    ]
    if faults:
        raise RecipeError(*faults)


def bidora_arguments(recipe: Recipe, task: Task, selection: bool) -> BiDoRAArguments:
    """Return the arguments of both phases; the run folder is the output.

    Args:
        recipe: with method bidora.
        task: whose metric chooses among checkpoints.
        selection: whether there are selection rows to evaluate on.
    """
    search, retrain = recipe.search, _phase(recipe.retrain)
    retrain.setdefault("max_steps", -1)
    return BiDoRAArguments(
        output_dir=str(recipe.output),
        **_common(recipe, task, selection),
        **_phase(search),
        upper_learning_rate=search.upper_learning_rate,
        upper_weight_decay=search.upper_weight_decay,
        upper_lr_scheduler_type=search.upper_schedule,
        upper_batch_size=None if search.upper_batch_size is None else search.upper_batch_size // ranks.count(),
        lower_steps=search.lower_steps,
        hypergradient=search.hypergradient,
        penalty=search.penalty,
        xi=search.xi,
        finite_difference_radius=search.finite_difference_radius,
        settled=search.settled,
        orthogonality=recipe.adapter.orthogonality,
        retrain_from=recipe.retrain.start,
        **{f"retrain_{name}": value for name, value in retrain.items()},
    )


def baseline_arguments(recipe: Recipe, task: Task, selection: bool) -> TrainingArguments:
    """Return the arguments of lora, dora and full: the retrain section alone.

    Args:
        recipe: the recipe.
        task: whose metric chooses among checkpoints.
        selection: whether there are selection rows to evaluate on.
    """
    output = recipe.output / "retrain"
    return TrainingArguments(output_dir=str(output), **_common(recipe, task, selection), **_phase(recipe.retrain))


def phase_steps(section: PhaseSection, rows: int) -> int:
    """Return the optimiser steps of a phase over so many rows, as Trainer counts them."""
    if section.steps is not None:
        return section.steps
    batches = math.ceil(rows / section.batch_size)
    return math.ceil((section.epochs or 0) * max(1, math.ceil(batches / section.gradient_accumulation_steps)))


def _phase(section: PhaseSection) -> dict[str, Any]:
    options: dict[str, Any] = {
        "per_device_train_batch_size": section.batch_size // ranks.count(),  # `check_processes` found no remainder
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "learning_rate": section.learning_rate,
        "weight_decay": section.weight_decay,
        "lr_scheduler_type": section.schedule,
        "warmup_steps": section.warmup_fraction,
        "max_grad_norm": section.max_grad_norm,
    }
    if section.steps is not None:
        options["max_steps"] = section.steps
    else:
        options["num_train_epochs"] = section.epochs or 3.0
    return options


def _common(recipe: Recipe, task: Task, selection: bool) -> dict[str, Any]:
    choose = recipe.select_best and selection
    metric = recipe.select_by or task.metrics[0]
    return {
        "seed": recipe.seed,
        "bf16": recipe.precision == "bfloat16",
        "logging_nan_inf_filter": False,
        "logging_steps": recipe.logging_steps,
        "eval_strategy": "steps" if selection else "no",
        "eval_steps": recipe.eval_steps,
        "save_strategy": "steps",
        "save_steps": recipe.save_steps,
        "save_total_limit": 2,
        "load_best_model_at_end": choose,
        "metric_for_best_model": (metric if task.has_logits else "loss") if choose else None,
        "greater_is_better": (task.has_logits and metric not in task.lower_is_better) if choose else None,
        "prediction_loss_only": not task.has_logits,
        "report_to": list(recipe.report_to),
        "per_device_eval_batch_size": recipe.eval_batch_size,
        "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        # The parts of a model that is trained in full may not all be reached by the loss.
        "ddp_find_unused_parameters": recipe.method == "full",
        "use_cpu": not torch.accelerator.is_available(),  # else bf16 is refused where there is no device
    }
