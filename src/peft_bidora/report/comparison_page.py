"""The page of a comparison."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from peft_bidora.recipe.folder import read_json_lines
from peft_bidora.report import figures
from peft_bidora.report.page import TablePart, figure, page_of
from peft_bidora.study.compare import read_comparison
from peft_bidora.study.statistics import least_p

SURE = 0.05


def comparison_page(folder: Path) -> dict[str, Any]:
    """Return the page of a comparison.

    Args:
        folder: what `compare` wrote.

    Raises:
        CheckpointError: it is not finished or damaged.
    """
    result = read_comparison(folder)
    found, metric, reference = result["methods"], result["metric"], result["reference"]
    over = f"{len(found[0]['values'])} {'folds' if result['folds'] else 'seeds'}"
    better = "less is better" if result["lower_is_better"] else "more is better"
    curves, ylabel = _curves(folder, result)
    return page_of(
        title=f"{metric}: {', '.join(method['label'] for method in found)}",
        lead=f"{over}, {len(result['rates'])} learning rates for each method; {better}.",
        summary=[*_sentences(result), *result["notes"]],
        figures=[
            figure(
                "Test metric",
                figures.methods(result),
                "A point a run; the diamond is the mean, with the standard deviation.",
            ),
            figure(
                f"Lead over {reference}",
                figures.differences(result),
                "Mean of the differences of runs with the same seed or fold. An interval that holds 0 shows no lead.",
            ),
            figure(
                "Choice of the learning rate",
                figures.rates(result),
                "Each run is compared at the rate that its own selection rows chose; the ring is what most have."
                if result["folds"]
                else "Means over the seeds that choose; a method is compared on test rows with its ringed rate.",
            ),
            figure(
                "On the way",
                figures.mean_curves(curves, ylabel),
                "Mean and standard deviation over the runs. BiDoRA has taken the steps of its search before.",
            ),
        ],
        tables=[
            TablePart(
                "Methods",
                ("method", f"{metric}, mean", "deviation", "difference", "from", "to", "p", "p, corrected", "test"),
                [_row(method) for method in found],
                f"Difference to {reference} with its 95 % interval; p-values are corrected by Holm's method.",
            ),
            TablePart(
                "Cost",
                ("method", "learning rates", "seconds a run", "over the reference", "peak MiB", "trained parameters"),
                [_cost(method, found, reference) for method in found],
                "Seconds of training. Runs that are trained side by side share the time and the memory of one process.",
            ),
            TablePart(
                "Other metrics",
                ("method", *found[0]["others"]),
                [[m["label"], *(_plus_minus(m["others"].get(name)) for name in found[0]["others"])] for m in found],
                "Mean ± standard deviation on test rows.",
            )
            if found[0]["others"]
            else None,
        ],
        folds=[],
    )


def _sentences(result: Mapping[str, Any]) -> list[str]:
    """Return the result in plain words."""
    sign = -1 if result["lower_is_better"] else 1
    found = sorted(result["methods"], key=lambda method: -sign * method["mean"])
    best, reference, drawn = found[0], result["reference"], "folds" if result["folds"] else "seeds"
    sentences = [
        f"{best['label']} has the best mean {result['metric']} on test rows, {best['mean']:.4f}"
        + "".join(f", then {each['label']} with {each['mean']:.4f}" for each in found[1:3])
        + "."
    ]
    for method in result["methods"]:
        pair = method.get("against_reference")
        if pair is None:
            continue
        p = pair["p_corrected"]
        lead = sign * pair["difference"]
        told = f"{method['label']} against {reference}: {pair['difference']:+.4f}"
        if p is not None and p < SURE:
            sentences.append(
                f"{told}, {'better' if lead > 0 else 'worse'}, and hardly by the chance of the {drawn} (p = {p:.2g})."
            )
        elif p is None:
            few = "a single pair says" if len(method["values"]) == 1 else "differences that are all equal say"
            sentences.append(f"{told}; {few} nothing about chance.")
        elif not result["folds"] and least_p(len(method["values"])) >= SURE:
            sentences.append(f"{told}; {len(method['values'])} seeds are too few to tell it from chance.")
        else:
            sentences.append(f"{told}; so much may well be chance (p = {p:.2g}).")
    return sentences


def _row(method: Mapping[str, Any]) -> list[Any]:
    pair = method.get("against_reference", {})
    keys = ("difference", "low", "high", "p", "p_corrected", "test")
    return [method["label"], method["mean"], method["standard_deviation"], *(pair.get(key) for key in keys)]


def _cost(method: Mapping[str, Any], found: Any, reference: str) -> list[Any]:
    base = next(each["seconds"] for each in found if each["label"] == reference)
    rates = ", ".join(
        f"{key.split('.', 1)[0]} {_kind(key)} {value:g}" for key, value in method["learning_rates"].items()
    )
    memory, trained = round(method["peak_memory_bytes"] / 2**20), method["trainable_parameters"]
    return [method["label"], rates, round(method["seconds"], 1), method["seconds"] / base, memory, trained]


def _kind(key: str) -> str:
    return "upper" if "upper" in key else "rate"


def _plus_minus(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.4f} ± {value['standard_deviation']:.4f}"


def _curves(folder: Path, result: Mapping[str, Any]) -> tuple[dict[str, list[tuple[float, float, float]]], str]:
    """Return mean and deviation of the selection metric at each step of the last phase, by method; else of the loss."""
    for key, ylabel in ((f"eval_{result['metric']}", f"{result['metric']} on selection rows"), ("eval_loss", "loss")):
        curves: dict[str, list[tuple[float, float, float]]] = {}
        for method in result["methods"]:
            at = defaultdict[int, list[float]](list)
            chosen = [run for run in method["runs"] if run["chosen"]]
            for run in chosen:
                for entry in read_json_lines(folder / run["folder"] / "metrics.jsonl"):
                    if entry.get("phase") == "retrain" and isinstance(entry.get(key), int | float):
                        at[entry["step"]].append(entry[key])
            whole = {step: values for step, values in sorted(at.items()) if len(values) == len(chosen)}
            curves[method["label"]] = [
                (step, mean(values), stdev(values) if len(values) > 1 else 0.0) for step, values in whole.items()
            ]
        if any(curves.values()):
            return curves, ylabel
    return curves, ylabel
