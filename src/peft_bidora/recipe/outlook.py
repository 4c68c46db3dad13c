"""What a run will take, told before it: tokens, parameters, steps, passes, memory and, if asked, time."""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from transformers import TrainerCallback

from peft_bidora.adapter.attach import count_trainable, head_modules
from peft_bidora.data.examples import Examples
from peft_bidora.recipe.loading import saved_bytes
from peft_bidora.recipe.options import adapter_options, phase_steps
from peft_bidora.recipe.prepare import Prepared
from peft_bidora.recipe.schema import Recipe
from peft_bidora.tasks.base_model import load_config, skeleton
from peft_bidora.tasks.truncation import UNCUT
from peft_bidora.training.arguments import estimator_for

# Passes that an upper step adds, a pass being one forward and backward; "exact" differentiates one of its two twice.
UPPER_PASSES = {"finite-difference": 3, "one-sided": 2, "exact": 2, "first-order": 1, "pbgd-free": 1}
TIMED_STEPS = 3


def outlook(prepared: Prepared) -> dict[str, Any]:
    """Return what can be told of a run without its weights, as JSON.

    The memory counts weights, gradients and AdamW's two moments, and activations after Korthikanti et al.,
    arXiv:2205.05198: rows · tokens · layers · (34 · width + 5 · heads · tokens) bytes at 16 bits. It is an upper
    bound where attention is fused. Packed weights count as many bits as they have, and their scales.
    """
    recipe = prepared.recipe
    config = load_config(prepared.source)
    if prepared.rows.task.outputs is not None:
        config.num_labels = prepared.rows.task.outputs
    model = skeleton(config, prepared.kind.auto_class(config))
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = total
    if recipe.method != "full":
        use_dora = recipe.method != "lora"
        head = head_modules(model)
        trainable = count_trainable(model, adapter_options(recipe), use_dora=use_dora, head=head)
        total += trainable - sum(p.numel() for name in head for p in model.get_submodule(name).parameters())
    tokens = _tokens(prepared)
    parts = prepared.rows.parts
    return {
        "rows": {name: len(part) for name, part in parts.items()},
        "classes": {name: _classes(prepared, part) for name, part in parts.items()},
        "tokens": tokens,
        "target_modules": prepared.target_modules,
        "trainable_parameters": trainable,
        "parameters": total,
        **_steps(prepared),
        "memory_bytes": memory_bytes(recipe, model, total, trainable, tokens["longest_read"]),
    }


def memory_bytes(recipe: Recipe, model: Any, total: int, trainable: int, tokens: int) -> int:
    """Return what a run takes beside the libraries, see `outlook`.

    Args:
        recipe: of the run.
        model: its base model, on the meta device.
        total: of all parameters.
        trainable: of those that are trained.
        tokens: of a row.
    """
    held = 4 * total - int(saved_bytes(recipe, model))
    return held + 12 * trainable + activation_bytes(recipe, model.config, tokens)


def time_steps(prepared: Prepared, make_trainer: Callable[[Prepared], Any]) -> float:
    """Return the seconds that the training of a run will take, by three steps of each phase; evaluations not counted.

    Args:
        prepared: the run; its weights are loaded, its output folder is left alone.
        make_trainer: builds the Trainer of a run.
    """
    recipe, steps = prepared.recipe, _steps(prepared)
    with tempfile.TemporaryDirectory() as folder:
        changes: dict[str, Any] = {"output": Path(folder), "select_best": False, "eval_steps": 10**9, "report_to": []}
        changes["save_steps"] = changes["eval_steps"]
        for phase in ("search", "retrain"):
            section = getattr(recipe, phase)
            changes[phase] = section.model_copy(update={"steps": TIMED_STEPS, "epochs": None})
        changes["search"] = changes["search"].model_copy(update={"lower_steps": 1})
        trainer = make_trainer(replace(prepared, recipe=recipe.model_copy(update=changes)))
        clock = _StepClock()
        trainer.add_callback(clock)
        trainer.train()
    lower = float(median(clock.seconds["retrain"][1:]))
    if recipe.method != "bidora":
        return lower * int(steps["retrain_steps"])
    upper = max(0.0, median(clock.seconds["search"][1:]) - lower)
    return lower * int(steps["search_steps"] + steps["retrain_steps"]) + upper * int(steps["upper_steps"])


class _StepClock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Take the seconds of each optimiser step, by phase; the first of a phase warms up."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.setdefault(Path(args.output_dir).name, []).append(perf_counter() - self._start)


def _classes(prepared: Prepared, part: Examples) -> dict[str, int]:
    """Return how often each class occurs, most first; nothing where labels are no classes."""
    return dict(Counter(prepared.kind.classes(part) if len(part) else ()).most_common())


def _tokens(prepared: Prepared) -> dict[str, Any]:
    task, parts = prepared.rows.task, [part for part in prepared.rows.parts.values() if len(part)]
    lengths = [
        len(ids)
        for part in parts
        for chunk in part.chunks()
        for ids in task.encode(chunk, prepared.tokenizer, UNCUT)["input_ids"]
    ]
    return {
        "median": median(lengths),
        "percentile_95": quantiles(lengths, n=20, method="inclusive")[-1],
        "longest": max(lengths),
        "longest_read": min(max(lengths), prepared.max_length),
        "truncated_rows": sum(length > prepared.max_length for length in lengths),
    }


def _steps(prepared: Prepared) -> dict[str, Any]:
    recipe, rows = prepared.recipe, {name: len(part) for name, part in prepared.rows.parts.items()}
    retrain = phase_steps(recipe.retrain, rows["lower"] + rows["upper"])
    if recipe.method != "bidora":
        return {"retrain_steps": retrain, "passes": retrain * recipe.retrain.gradient_accumulation_steps}
    search = phase_steps(recipe.search, rows["lower"])
    upper = search // recipe.search.lower_steps
    estimator = estimator_for(recipe.search.hypergradient, bfloat16=recipe.precision == "bfloat16")
    upper_passes = UPPER_PASSES[estimator]
    return {
        "search_steps": search,
        "upper_steps": upper,
        "retrain_steps": retrain,
        "passes_per_search_step": 1 + upper_passes / recipe.search.lower_steps,
        "passes": (search + upper_passes * upper) * recipe.search.gradient_accumulation_steps
        + retrain * recipe.retrain.gradient_accumulation_steps,
    }


def activation_bytes(recipe: Recipe, config: Any, tokens: int) -> int:
    """Return what a pass over a batch of rows of so many tokens keeps, see `outlook`.

    With activation checkpointing that is the input of each layer, and one whole layer at a time.
    """
    width = getattr(config, "hidden_size", 0)
    layers, heads = getattr(config, "num_hidden_layers", 0), getattr(config, "num_attention_heads", 0)
    sections = [recipe.search, recipe.retrain] if recipe.method == "bidora" else [recipe.retrain]
    rows = max(section.batch_size for section in sections)
    width_of_number = 2 if recipe.precision == "bfloat16" else 4
    of_layer = (34 * width + 5 * heads * tokens) * width_of_number // 2
    inputs = layers * width * width_of_number
    return int(rows * tokens * (of_layer + inputs if recipe.activation_checkpointing else layers * of_layer))
