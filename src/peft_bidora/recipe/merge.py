"""Turn a finished run into weights, or an adapter, that any server loads."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter, head_modules
from peft_bidora.adapter.export import convert_to_lora, merge_adapter, save_adapter
from peft_bidora.data.examples import Examples
from peft_bidora.data.source import read_table
from peft_bidora.errors import AdapterError, RecipeError
from peft_bidora.recipe.finished import FinishedRun, load_base, load_trained, read_run, tabulated
from peft_bidora.recipe.folder import LOADED, METRICS, read_object, write_json
from peft_bidora.recipe.output import disk_reason
from peft_bidora.tasks.base_model import load_config, resolve_model

ROWS = 16
RECORD = "merge.json"  # what was merged, and the files that stand for it
MOST_LOGITS = 2**24  # that are compared
TOLERANCE = 1e-4  # float32: what folding the scale into the weight may round


@dataclass(frozen=True)
class Merged:
    """What `merge` made, and how near it is to the run's own model.

    Args:
        folder: where it lies.
        rows: test rows on which the logits were compared.
        difference: the largest absolute difference of a logit.
        errors: of a LoRA adapter, the relative error of the change of each layer's weight; empty for merged weights.
        reading: the Python that loads it and gets a prediction in the user's unit.
    """

    folder: Path
    rows: int
    difference: float
    errors: dict[str, float]
    reading: list[str]


def merge(
    run_folder: Path, output: Path, *, lora_rank: int | None = None, dtype: str = "float32", overwrite: bool = False
) -> Merged:
    """Write the merged weights of a run, or a LoRA adapter near to it, with tokenizer and configuration.

    Args:
        run_folder: what `run` wrote.
        output: the folder to make.
        lora_rank: None for merged weights, else the rank of a LoRA adapter for servers that know no DoRA.
        dtype: of the merged weights, float32 or bfloat16.
        overwrite: replace an earlier merge in the output folder; what else is there is never removed.

    Raises:
        BiDoRAError: the run is not finished or has nothing to merge, the output is taken, or the merged weights in
            float32 give other logits.
    """
    output = output.absolute()  # of which `.` has a name
    if dtype not in ("float32", "bfloat16"):
        raise RecipeError(f"dtype={dtype}: expected float32 or bfloat16.")
    _check_output(output, overwrite)
    run = read_run(run_folder)
    if run.recipe.method == "full":
        raise AdapterError(f"{run_folder} was trained in full: its weights in {run_folder / 'model'} need no merging.")
    if run.recipe.method == "lora" and lora_rank is not None:
        raise AdapterError(f"{run_folder} was trained by lora: its adapter in {run_folder / 'adapter'} is one already.")
    examples = _first_rows(run)
    batch = _batch(run, examples)
    model = load_trained(run, unpacked=True).eval()
    expected = _logits(model, batch)
    errors: dict[str, float] = {}
    if lora_rank is not None:
        merged = _lora_model(run, model, lora_rank)
        errors = convert_to_lora(model, merged)
    else:
        merged = merge_adapter(model, lambda module: _logits(module, batch), TOLERANCE).to(getattr(torch, dtype))
    difference = (_logits(merged.eval(), batch) - expected).abs().max().item()
    # Of a LoRA adapter the base model stays what it is.
    state = run.kind.folded(run.task, merged, run.tokenizer) if lora_rank is None else run.task.state()
    lines = [*_loading(run, output, lora_rank), *run.kind.reading(state, examples.texts[0], run.tokenizer)]
    with _written_whole(output) as folder:
        if lora_rank is None:
            merged.save_pretrained(folder)
        else:
            save_adapter(merged, folder)
        run.tokenizer.save_pretrained(folder)
        files = sorted(path.name for path in folder.iterdir())
        record = {"run": str(run_folder), "difference": difference, "errors": errors, "reading": lines}
        write_json(folder / RECORD, {**record, "files": files})
    return Merged(output, len(batch["input_ids"]), difference, errors, lines)


def _loading(run: FinishedRun, output: Path, lora_rank: int | None) -> list[str]:
    """Return the Python that loads what is written."""
    if lora_rank is not None:  # as the run's own adapter is loaded, from another folder
        lines = read_object(run.recipe.output / METRICS, ("loading_lines",))["loading_lines"]
        return [LOADED.sub(lambda found: found.group(1) + repr(str(output)), line) for line in lines if _loads(line)]
    auto_class = run.kind.auto_class(load_config(resolve_model(run.recipe.model))).__name__
    return [
        f"from transformers import {auto_class}, AutoTokenizer",
        f"model = {auto_class}.from_pretrained({str(output)!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({str(output)!r})",
    ]


def _loads(line: str) -> bool:
    return line.startswith(("from ", "model = ", "tokenizer = "))


def _check_output(output: Path, overwrite: bool) -> None:
    """Raise RecipeError unless the output is free, or holds an earlier merge and nothing else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir():
        raise RecipeError(f"{output} is a file; expected a folder to make. Name another.")
    try:
        written = {RECORD, *json.loads((output / RECORD).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        written = set()
    if foreign := sorted(path.name for path in output.iterdir() if path.name not in written):
        raise RecipeError(f"{output} holds what no merge wrote, {', '.join(foreign[:5])}. Name another folder.")
    if not overwrite:
        raise RecipeError(f"{output} exists already. Replace it by --overwrite, or name another folder.")


def _lora_model(run: FinishedRun, model: Any, rank: int) -> Any:
    base = load_base(run, unpacked=True).to(model.device)
    options = AdapterOptions(rank, rank, 0.0, run.recipe.adapter.target_modules)
    return attach_adapter(base, options, use_dora=False, task_type=run.task.peft_type, head=head_modules(base))


def _first_rows(run: FinishedRun) -> Examples:
    """Return the first test rows of the run."""
    examples = tabulated(run, read_table(run.recipe.output / "predictions.jsonl"))
    return examples.take(range(min(ROWS, len(examples))))


def _batch(run: FinishedRun, examples: Examples) -> dict[str, Any]:
    columns = run.task.encode(examples, run.tokenizer, run.max_length)
    rows = [{name: values[row] for name, values in columns.items()} for row in range(len(examples))]
    return dict(run.task.collator(run.tokenizer)(rows))


def _logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
    with torch.no_grad():
        logits: Tensor = model(**inputs)["logits"]
    if logits.ndim == 3:  # of every token, each as wide as a vocabulary may be
        logits = logits[:, :: max(1, -(-logits.numel() // MOST_LOGITS))]
    return logits.float().cpu()


@contextmanager
def _written_whole(output: Path) -> Iterator[Path]:
    """Write into a folder beside the output and rename it, so that a kill leaves no half of it."""
    partial = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if output.is_dir():
            shutil.rmtree(output)
        os.replace(partial, output)
    except Exception as error:
        if (reason := disk_reason(error)) is None:
            raise
        raise AdapterError(f"{output} cannot be written: {reason}. Mend that, then merge again.") from error
