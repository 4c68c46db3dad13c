"""What a comparison says: for each method its best rate, its test metrics, and how sure its lead over another is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean, median, stdev
from typing import Any

from peft_bidora.errors import NonFiniteError
from peft_bidora.recipe.lane_settings import Setting
from peft_bidora.recipe.schema import Recipe
from peft_bidora.study.plan import RATES, Plan, Variant, value_at
from peft_bidora.study.statistics import Paired, holm, least_p, paired_folds, paired_seeds

FEW_ROWS = 30  # of which a single one moves an accuracy by more than three points
ENOUGH = 10  # pairs: of ten normal ones the interval holds the truth in 90 of 100 cases, of five in 85
# Of each run that was trained, by label and name; None where it was stopped.
Metrics = Mapping[tuple[str, str], dict[str, Any] | None]


def summarise(plan: Plan, metrics: Metrics) -> dict[str, Any]:
    """Return a comparison as JSON.

    A variant's rate is that of the best mean selection metric over the seeds that choose; a rate with a run that was
    stopped counts as the worst. Over folds each run has the rate that is best on its own selection rows, since those
    of the other folds are among its test rows; the variant's is then the one that most have.
    The test metrics of that rate are compared; those of the others are kept beside their runs.

    Args:
        plan: what was trained.
        metrics: what came of it.

    Raises:
        NonFiniteError: every rate of a variant had a run that was stopped.
    """
    reference = plan.reference
    require_rates(plan, metrics)
    methods = [_method(plan, variant, metrics) for variant in plan.variants]
    values = {method["label"]: method["values"] for method in methods}
    others = [method for method in methods if method["label"] != reference]
    ratio = _test_over_train(next(method for method in methods if method["label"] == reference))
    found = [_paired(plan, values[method["label"]], values[reference], ratio) for method in others]
    known = [pair.p for pair in found if pair.p is not None]
    corrected = iter(holm(known))
    for method, pair in zip(others, found, strict=True):
        p = None if pair.p is None else next(corrected)
        method["against_reference"] = {**asdict(pair), "p_corrected": p}
    return {
        "metric": plan.metric,
        "lower_is_better": plan.lower_is_better,
        "reference": reference,
        "seeds": list(plan.seeds),
        "folds": plan.folds,
        "rates": list(plan.rates),
        "tuning_seeds": plan.tuning_seeds,
        "methods": methods,
        "notes": [*_notes(plan), *_selection_notes(plan, methods)],
    }


def require_rates(plan: Plan, metrics: Metrics) -> dict[str, str]:
    """Return the rate of each variant by its label.

    Args:
        plan: what is trained.
        metrics: of the runs that choose, at least.

    Raises:
        NonFiniteError: every rate of a variant had a run that was stopped.
    """
    rates = {variant.label: _chosen(plan, _runs(plan, variant, metrics))[0] for variant in plan.variants}
    if stopped := [label for label, rate in rates.items() if rate is None]:
        raise NonFiniteError(
            f"{', '.join(stopped)}: at every rate a run was stopped, for a loss or gradient that is not finite. Lower"
            " the learning rates, or --rates."
        )
    return {label: rate for label, rate in rates.items() if rate is not None}


def _method(plan: Plan, variant: Variant, metrics: Metrics) -> dict[str, Any]:
    runs = _runs(plan, variant, metrics)
    rate, chosen = _chosen(plan, runs)
    selection = _choice(plan, runs)[1]
    values = [run["test"][plan.metric] for run in chosen]
    recipe = variant.settings[0].recipe
    at_rate = next((setting.recipe for setting in variant.settings if setting.values["rate"] == rate), recipe)
    return {
        "label": variant.label,
        "method": recipe.method,
        "rate": None if rate is None else float(rate),
        "learning_rates": {key: value_at(at_rate, key) for key in RATES if _reads(recipe, key)},
        "selection_by_rate": selection,
        "values": values,
        "mean": _mean(values),
        "standard_deviation": _deviation(values),
        "others": {
            name: {"mean": _mean(own), "standard_deviation": _deviation(own)}
            for name in (chosen[0]["test"] if chosen else ())
            if name != plan.metric and None not in (own := [run["test"].get(name) for run in chosen])
        },
        "seconds": median(run["seconds"] for run in chosen) if chosen else None,
        "peak_memory_bytes": max((run["peak_memory_bytes"] for run in chosen), default=None),
        "trainable_parameters": chosen[0]["trainable_parameters"] if chosen else None,
        "runs": [{**run, "chosen": run in chosen} for run in runs],
    }


def _runs(plan: Plan, variant: Variant, metrics: Metrics) -> list[dict[str, Any]]:
    names = [(setting, (variant.label, setting.name)) for setting in variant.settings]
    return [_run(plan, variant, setting, metrics[name]) for setting, name in names if name in metrics]


def _chosen(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[Mapping[str, Any]]]:
    """Return the rate of a variant and its runs that are compared; None where every rate was stopped."""
    if plan.folds is None:
        rate, _ = _choice(plan, runs)
        return rate, [run for run in runs if run["rate"] == rate]
    chosen = []
    for seed, fold in dict.fromkeys((run["seed"], run["fold"]) for run in runs):
        own = [run for run in runs if (run["seed"], run["fold"]) == (seed, fold)]
        rate, _ = _choice(plan, own)
        if rate is None:
            return None, []
        chosen += [run for run in own if run["rate"] == rate]
    return Counter(run["rate"] for run in chosen).most_common(1)[0][0], chosen


def _choice(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> tuple[str | None, dict[str, float | None]]:
    """Return the best rate of a variant, and the mean selection metric by rate, of the runs that choose."""
    by_rate: dict[str, list[Mapping[str, Any]]] = {f"{rate:g}": [] for rate in plan.rates}
    for run in runs:
        if run["tunes"] or run["stopped"]:
            by_rate[run["rate"]].append(run)
    # None where a run was stopped, which has no metric.
    selection = {rate: _mean([run["selection"] for run in own]) for rate, own in by_rate.items()}
    return _best(plan, by_rate, selection), selection


def _run(plan: Plan, variant: Variant, setting: Setting, found: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a comparison keeps of a run."""
    kept: dict[str, Any] = {**setting.values, "folder": f"{plan.folder(variant).name}/{setting.name}"}
    kept["tunes"] = plan.tunes(setting)
    if found is None or found["test"].get(plan.metric, {}).get("value") is None:  # of outputs that are not finite
        return {**kept, "stopped": True, "selection": None, "test": {}, "seconds": None}
    return {
        **kept,
        "stopped": False,
        "selection": found.get("selection", {}).get(plan.metric, {}).get("value"),
        "test": {name: each["value"] for name, each in found["test"].items()},
        **{name: found[name] for name in ("seconds", "peak_memory_bytes", "trainable_parameters", "rows")},
    }


def _reads(recipe: Recipe, key: str) -> bool:
    return recipe.method == "bidora" or not key.startswith("search.")


def _best(plan: Plan, by_rate: Mapping[str, Sequence[Any]], selection: Mapping[str, float | None]) -> str | None:
    """Return the rate of the best selection metric; of several that are level the one that stands first."""
    if len(by_rate) == 1:
        ((rate, runs),) = by_rate.items()
        return None if any(run["stopped"] for run in runs) else rate
    sign = -1 if plan.lower_is_better else 1
    known = {rate: sign * value for rate, value in selection.items() if value is not None}
    return max(known, key=known.__getitem__) if known else None


def _test_over_train(method: Mapping[str, Any]) -> float:
    """Return the test rows of a run over those it was trained on, selection rows and what a limit left out apart."""
    rows = [run["rows"] for run in method["runs"] if run["chosen"]]
    return float(mean(each["test"] / (each["lower"] + each["upper"]) for each in rows))


def _paired(plan: Plan, values: Sequence[float], reference: Sequence[float], test_over_train: float) -> Paired:
    if plan.folds:
        return paired_folds(values, reference, test_over_train=test_over_train)
    return paired_seeds(values, reference)


def _notes(plan: Plan) -> list[str]:
    """Return what a reader of the table should mind."""
    notes = []
    if plan.tuning_seeds < len(plan.seeds):
        notes.append(f"The rates were chosen by the selection rows of {plan.tuning_seeds} of {len(plan.seeds)} seeds.")
    if plan.folds is not None and len(plan.rates) > 1:
        notes.append(
            "Over folds each run has the rate that its own selection rows chose; the one told is what most have."
        )
    if plan.folds is None and least_p(len(plan.seeds)) > 0.05 / max(1, len(plan.variants) - 1):
        least = least_p(len(plan.seeds)) * max(1, len(plan.variants) - 1)
        notes.append(
            f"With {len(plan.seeds)} seeds no p-value can be below {min(1.0, least):.2g}: take this as a first look,"
            " and more seeds for a proof."
        )
    if plan.folds is None and len(plan.seeds) < ENOUGH:
        notes.append(
            f"An interval of fewer than {ENOUGH} pairs is narrower than it should be: that it holds no 0 proves"
            " nothing."
        )
    if plan.folds is None:
        notes.append("All runs are scored on the same test rows, whose own chance no number of seeds takes away.")
    return notes


def _selection_notes(plan: Plan, methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell where the rows that choose are too few to choose well, or cost more than the training."""
    rows = [run["rows"] for method in methods for run in method["runs"] if run["chosen"]]
    fewest = min(each["selection"] for each in rows)
    notes = []
    if 0 < fewest < FEW_ROWS and len(plan.rates) > 1:
        notes.append(
            f"Rates and checkpoints were chosen on {fewest} selection rows, which choose noisily: raise"
            " data.selection_fraction, or tune nothing with --rates 1."
        )
    if any(each["selection"] > each["lower"] + each["upper"] for each in rows):
        notes.append(
            f"{max(each['selection'] for each in rows):,} selection rows are more than the training rows, and take much"
            " of the time: lower data.selection_fraction."
        )
    return notes


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; 0 for a single value."""
    return (stdev(values) if len(values) > 1 else 0.0) if values else None
