"""What is left to do once a run is trained: save its weights, score its rows, write the run folder."""

from typing import Any

from peft_bidora.adapter.export import save_adapter
from peft_bidora.adapter.shards import is_sharded
from peft_bidora.recipe import folder
from peft_bidora.recipe.loading import packing
from peft_bidora.recipe.memory import peak_memory_bytes
from peft_bidora.recipe.prepare import Prepared
from peft_bidora.recipe.progress import progress_bar
from peft_bidora.tasks.base_model import load_config
from peft_bidora.tasks.intervals import scores_with_intervals
from peft_bidora.training import ranks
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.prediction import predict


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
    peak = peak_memory_bytes()
    ranks.on_first(lambda: _save(prepared, trainer, history))
    predictions = {
        name: _predictions(prepared, trainer, name, shown)
        for name in ("selection", "test")
        if len(prepared.rows.parts[name])
    }
    told = {"kept": kept, "seconds": seconds, "peak_memory_bytes": peak}
    return ranks.on_first(lambda: _score(prepared, trainer, manifest, predictions, told))


def _save(prepared: Prepared, trainer: ExactTrainer, history: list[dict[str, Any]]) -> None:
    recipe = prepared.recipe
    weights = folder.weights_folder(recipe)
    if recipe.method == "full":
        trainer.model.save_pretrained(weights)
    else:
        save_adapter(trainer.model, weights)
    prepared.tokenizer.save_pretrained(weights)
    folder.write_json_lines(recipe.output / "metrics.jsonl", history)


def _predictions(prepared: Prepared, trainer: ExactTrainer, name: str, shown: bool) -> list[Any]:
    """Return the prediction of each row of a split; each rank computes its part."""
    recipe, part = prepared.recipe, prepared.rows.parts[name]
    with progress_bar(len(part), name, shown and ranks.rank() == 0) as progress:
        return predict(
            trainer.model,
            prepared.rows.task,
            prepared.tokenizer,
            part,
            max_length=prepared.max_length,
            batch_size=recipe.eval_batch_size,
            bfloat16=recipe.precision == "bfloat16",
            progress=progress,
        )


def _score(
    prepared: Prepared,
    trainer: ExactTrainer,
    manifest: dict[str, Any],
    predictions: dict[str, list[Any]],
    told: dict[str, Any],
) -> dict[str, Any]:
    """Write the predictions and the metrics; return the metrics."""
    recipe, task, output = prepared.recipe, prepared.rows.task, prepared.recipe.output
    scores, details, notes = {}, {}, list[str]()
    for name, predicted in predictions.items():
        part = prepared.rows.parts[name]
        labels = part.required_labels()
        scores[name] = scores_with_intervals(task, predicted, labels, recipe.seed)
        if name == "test":
            details = task.details(predicted, labels)
            added = task.prediction_columns(predicted)
            notes = _sameness(added)
            rows = zip(part.rows, added, strict=True)
            folder.write_json_lines(output / "predictions.jsonl", ({**row, **extra} for row, extra in rows))
    trainable, total = _parameters(trainer)
    metrics = {
        "method": recipe.method,
        **scores,
        "test_details": details,
        "kept": told["kept"],
        "notes": notes,
        "trainable_parameters": trainable,
        "parameters": total,
        "seconds": told["seconds"],
        "peak_memory_bytes": told["peak_memory_bytes"],
        "rows": manifest["rows"],
        "model": prepared.source,
        "loading_lines": loading_lines(prepared),
    }
    processes = {"processes": ranks.count(), "sharded": is_sharded(trainer.model)}
    ran = {"device": str(trainer.args.device), **processes, "seconds": told["seconds"]}
    folder.write_json(output / folder.MANIFEST, {**manifest, **ran})
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
