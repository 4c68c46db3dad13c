"""The page of a single run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_bidora.adapter.layer import base_row_norm_squared, dora_layers
from peft_bidora.data.wording import shown
from peft_bidora.recipe import folder as run_folder
from peft_bidora.recipe.finished import FinishedRun, load_trained, read_run
from peft_bidora.recipe.load import dump_recipe
from peft_bidora.report import figures
from peft_bidora.report.page import Fold, TablePart, figure, page_of
from peft_bidora.report.wrong_rows import named, wrong_rows
from peft_bidora.study.decomposition import Change, decompose_adapter

LAST_LOSSES = 3
TITLES = {"bidora": "BiDoRA", "dora": "DoRA", "lora": "LoRA", "full": "Full fine-tuning"}


def run_page(folder: Path) -> dict[str, Any]:
    """Return the page of a finished run.

    Args:
        folder: what `run` wrote.

    Raises:
        BiDoRAError: it is not finished or damaged, or its base model is not to be had.
    """
    run = read_run(folder)
    metrics = run_folder.read_object(folder / run_folder.METRICS, ("test", "rows", "seconds"))
    manifest = run_folder.read_object(folder / run_folder.MANIFEST, ("versions",))
    history, rows = (run_folder.read_json_lines(folder / f"{name}.jsonl") for name in ("metrics", "predictions"))
    changes, moved = _weights(run)
    details, label = metrics.get("test_details", {}), run.columns.label or "label"
    return page_of(
        title=f"{TITLES[run.recipe.method]} on {Path(run.recipe.data.train).name}",
        lead=f"{run.recipe.task}, {_base(run)}; seed {run.recipe.seed}, {metrics['rows']['test']:,} test rows.",
        summary=_sentences(metrics, history, moved),
        figures=[
            figure(
                "Loss on the way",
                figures.learning_curves(history),
                "Where the selection loss rises while the lower loss falls, the adapter begins to learn rows by heart.",
            ),
            *_of_predictions(rows, label, details),
            figure(
                "Magnitudes, before and after",
                figures.magnitudes(moved) if moved else None,
                "0 is the pretrained model's row norm. Bars hold half of a layer's rows, lines nine tenths.",
            ),
            figure(
                "What training did to the weights",
                figures.decomposition(changes) if changes else None,
                "A point an adapted layer: to the right the rows turned, upwards they changed in length.",
            ),
        ],
        tables=[
            TablePart(
                "Test metrics",
                ("metric", "value", "from", "to"),
                [[name, each["value"], each["low"], each["high"]] for name, each in metrics["test"].items()],
                "95 % bootstrap intervals over the test rows, which were read once, at the end.",
            ),
            _by_class(details),
            wrong_rows(rows, run.columns.text, label),
            TablePart("Cost", ("what", "value"), _costs(metrics)),
        ],
        folds=[
            Fold("Settings", dump_recipe(run.recipe)),
            Fold("Versions", "\n".join(f"{name} {number}" for name, number in manifest["versions"].items())),
            Fold("Load it without this package", "\n".join(metrics.get("loading_lines", []))),
        ],
    )


def _sentences(metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]], moved: Mapping[str, Any]) -> list[str]:
    """Return the result in plain words."""
    name, score = next(iter(metrics["test"].items()))
    value, low, high = (shown(score[key]) for key in ("value", "low", "high"))
    sentences = [f"On the test rows {name} is {value}; other test rows of this kind would give {low} to {high}."]
    classes = (metrics.get("test_details") or {}).get("by_class")
    if name == "accuracy" and classes:
        most = max(classes, key=lambda each: each["rows"])
        share = most["rows"] / sum(each["rows"] for each in classes)
        sentences.append(f"Always saying {most['label']!r}, the most frequent class, would give {share:.4f}.")
    retrain = [entry for entry in history if entry["phase"] == "retrain"]
    lower = [entry["loss"] for entry in retrain if "loss" in entry][-LAST_LOSSES:]
    selection = [entry["eval_loss"] for entry in retrain if "eval_loss" in entry]
    if lower and selection:
        last, gap = sum(lower) / len(lower), selection[-1] - sum(lower) / len(lower)
        told = f"{abs(gap):.3f} {'more' if gap > 0 else 'less'}"
        sentences.append(
            f"Generalisation gap at the end: the loss is {last:.3f} on training rows (the mean of the last"
            f" {len(lower)} that were logged) and {selection[-1]:.3f} on selection rows, {told}."
        )
    kept = metrics.get("kept")
    if kept:
        sentences.append(f"The checkpoint of step {kept['step']:,} of {kept['of']:,} was kept.")
    if moved:
        far = {layer: float(abs(values).mean()) for layer, values in moved.items()}
        most = max(far, key=far.__getitem__)
        mean = sum(far.values()) / len(far)
        sentences.append(f"Magnitudes moved by {mean:.1%} in the mean, most in {most} ({far[most]:.1%}).")
    return [*sentences, *(f"Mind: {note}" for note in metrics.get("notes", ()))]


def _of_predictions(rows: Sequence[Mapping[str, Any]], label: str, details: Mapping[str, Any]) -> list[Any]:
    """Return the figures of what was predicted."""
    parts = []
    if "confusion" in details:
        names = [each["label"] for each in details["by_class"]]
        drawn = figures.confusion(details["confusion"], names)
        parts.append(figure("Confusion", drawn, "A row for each label, a column for each prediction; rows of test."))
    if rows and "predicted_label" in rows[0]:
        confidence = [max(row["probabilities"].values()) for row in rows]
        right = [named(row[label]) == row["predicted_label"] for row in rows]
        told = (
            "On the dotted line confidence can be trusted; below it the model is too sure. Larger dots are more rows."
        )
        parts.append(figure("Calibration", figures.calibration(confidence, right), told))
    if rows and "predicted_value" in rows[0]:
        drawn = figures.residuals([float(row[label]) for row in rows], [row["predicted_value"] for row in rows])
        parts.append(figure("Predicted and true", drawn, "On the dotted line a prediction is exact."))
    return parts


def _by_class(details: Mapping[str, Any]) -> TablePart | None:
    for key, title in (("by_class", "By class"), ("by_type", "By type of entity"), ("by_tag", "By tag")):
        if details.get(key):
            head = list(details[key][0])
            return TablePart(title, head, [[each[name] for name in head] for each in details[key]])
    return None


def _costs(metrics: Mapping[str, Any]) -> list[list[Any]]:
    return [
        ["training", f"{metrics['seconds']:.1f} s"],
        ["peak memory", f"{metrics['peak_memory_bytes'] / 2**20:,.0f} MiB"],
        ["trained parameters", f"{metrics['trainable_parameters']:,} of {metrics['parameters']:,}"],
        *([f"{name} rows", f"{count:,}"] for name, count in metrics["rows"].items()),
    ]


def _weights(run: FinishedRun) -> tuple[list[Change], dict[str, Any]]:
    """Return ΔM and ΔD of each adapted layer, and m / ‖W0‖ − 1 of each with magnitudes."""
    if run.recipe.method == "full":
        return [], {}
    model = load_trained(run)
    moved = {
        name.removeprefix("base_model.model."): (
            module.lora_magnitude_vector[adapter].weight.detach().float() / base_row_norm_squared(module).sqrt() - 1
        )
        .cpu()
        .numpy()
        for name, module, adapter in dora_layers(model)
    }
    return decompose_adapter(model), moved


def _base(run: FinishedRun) -> str:
    return Path(run.recipe.model).name if Path(run.recipe.model).is_dir() else run.recipe.model
