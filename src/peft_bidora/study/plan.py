"""What is compared: methods, each at its own learning rates, over seeds or folds."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_bidora.errors import Faults, RecipeError
from peft_bidora.recipe.lane_settings import LONGEST, Setting, folder_name
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import Prepared, prepare
from peft_bidora.recipe.schema import Recipe
from peft_bidora.study.labels import overrides_of

NUMBER = re.compile(r"\d[\d,.]*")
RATES = ("retrain.learning_rate", "search.learning_rate", "search.upper_learning_rate")


@dataclass(frozen=True)
class Variant:
    """A method, with what of the recipe is otherwise for it.

    Args:
        label: as the user wrote it: `bidora search.lower_steps=2`.
        settings: its runs, rate by rate, seed by seed, fold by fold.
    """

    label: str
    settings: tuple[Setting, ...]

    @property
    def side_by_side(self) -> bool:
        """Return whether its runs can be lanes."""
        return self.settings[0].recipe.method != "full"


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Args:
        output: its folder.
        variants: the methods.
        reference: the label of the one that the others are compared with.
        rates: factors on the recipe's learning rates; each variant gets the one that is best on selection rows.
        seeds: of the runs.
        folds: of cross-validation; None where the recipe gives the test rows.
        tuning_seeds: how many of the seeds, the first, choose the rate; the others are trained at that rate alone.
        metric: by which rates are chosen, on selection rows, and the methods compared, on test rows.
        lower_is_better: whether it falls as a model gets better.
        notes: what a user should know of the rows, and may be content with.
    """

    output: Path
    variants: tuple[Variant, ...]
    reference: str
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    folds: int | None
    tuning_seeds: int
    metric: str
    lower_is_better: bool
    notes: tuple[str, ...] = ()

    def folder(self, variant: Variant) -> Path:
        """Return where the runs of a variant lie."""
        return self.output / folder_name(variant.label)

    def tunes(self, setting: Setting) -> bool:
        """Return whether a run is one of those that choose the rate."""
        return int(setting.values["seed"]) in self.seeds[: self.tuning_seeds]

    @property
    def runs(self) -> int:
        """Return the number of runs."""
        of_rate = len(self.seeds) * (self.folds or 1)
        tuning = of_rate * self.tuning_seeds // len(self.seeds)
        return len(self.variants) * (tuning * len(self.rates) + of_rate - tuning)


def make_plan(
    path: Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    *,
    seeds: int,
    rates: Sequence[float] = (1.0,),
    folds: int | None = None,
    tuning_seeds: int | None = None,
    reference: str | None = None,
) -> Plan:
    """Return the runs of a comparison, their recipes checked against model and data.

    Args:
        path: the recipe that all share.
        overrides: `key=value`, of all.
        methods: labels: a method, then what of the recipe is otherwise for it, with blanks between.
        seeds: how many, from the recipe's own up.
        rates: factors on the learning rates of both phases and both levels.
        folds: of cross-validation, repeated for each seed; None where the recipe gives the test rows.
        tuning_seeds: of the seeds, the first so many choose the rate; None for all.
        reference: the label that the others are compared with; None for the first.

    Raises:
        BiDoRAError: all faults of all runs, one sentence each.
    """
    shared, faults = load_recipe(path, overrides), Faults()
    if seeds < 1:
        faults.add(RecipeError(f"--seeds {seeds}: expected a number from 1 up."))
    if tuning_seeds is not None and not 1 <= tuning_seeds <= seeds:
        faults.add(RecipeError(f"--tuning-seeds {tuning_seeds}: expected a number from 1 to --seeds, {seeds}."))
    if folds is not None and tuning_seeds is not None:
        faults.add(
            RecipeError("--tuning-seeds and --folds: each fold chooses by its own selection rows. Leave one out.")
        )
    if reference is not None and reference not in methods:
        faults.add(RecipeError(f"--reference {reference!r}: expected one of {', '.join(map(repr, methods))}."))
    _check_numbers(shared, methods, rates, faults)
    tuning = seeds if tuning_seeds is None or len(rates) == 1 else tuning_seeds
    variants = []
    for label in methods:
        own = overrides_of(label, faults)
        if own is None:
            continue
        base = faults.check(load_recipe, path, [*overrides, *own])
        if base is None:
            continue
        settings = []
        for rate in rates:
            for seed in range(shared.seed, shared.seed + seeds):
                for fold in range(folds or 1):
                    values = {"rate": f"{rate:g}", "seed": str(seed), **({"fold": str(fold)} if folds else {})}
                    name = ",".join(f"{key}={value}" for key, value in values.items())
                    chosen = [f"{key}={value_at(base, key) * rate:.6g}" for key in RATES] + [f"seed={seed}"]
                    chosen += [f"data.folds={folds}", f"data.fold={fold}"] if folds else []
                    if base.data.test_fraction and base.data.test_seed is None:  # all are scored on the same rows
                        chosen.append(f"data.test_seed={shared.seed}")
                    chosen.append(f"output={shared.output / folder_name(label) / name}")
                    recipe = faults.check(load_recipe, path, [*overrides, *own, *chosen])
                    if recipe is not None:
                        settings.append(Setting(name, values, recipe))
        variants.append(Variant(label, tuple(settings)))
    faults.raise_any()
    # Rates change nothing that is checked.
    checked = [setting for each in variants for setting in each.settings[: len(each.settings) // len(rates)]]
    prepared = [faults.check(prepare, setting.recipe) for setting in checked]
    faults.raise_any()
    first = prepared[0]
    assert first is not None
    for number, (setting, run) in enumerate(zip(checked, prepared, strict=True)):
        one = prepared[number % (len(checked) // len(variants))]
        assert run is not None
        assert one is not None
        faults.check(_check_same_rows, setting, run, one)
    faults.raise_any()
    if len(rates) > 1 and not all(run and len(run.rows.parts["selection"]) for run in prepared):
        raise RecipeError("--rates: there are no selection rows to choose by. Set data.selection_fraction.")
    task, numbers = first.rows.task, tuple(range(shared.seed, shared.seed + seeds))
    metric = first.recipe.select_by or task.metrics[0]
    lower = metric in task.lower_is_better
    notes = _notes_of(run for run in prepared if run)
    return Plan(
        output=shared.output,
        variants=tuple(variants),
        reference=methods[0] if reference is None else reference,
        rates=tuple(rates),
        seeds=numbers,
        folds=folds,
        tuning_seeds=tuning,
        metric=metric,
        lower_is_better=lower,
        notes=notes,
    )


def _notes_of(prepared: Iterable[Prepared]) -> tuple[str, ...]:
    """Return the notes of all runs; of those that differ in their numbers alone, seed by seed, the first."""
    notes: dict[str, str] = {}
    for run in prepared:
        for note in run.rows.notes:
            notes.setdefault(NUMBER.sub("#", note), note)
    return tuple(notes.values())


def _check_same_rows(setting: Setting, run: Prepared, first: Prepared) -> None:
    """Raise RecipeError where a run is chosen or scored by other rows than the first method's of the same seed."""
    if run.rows.columns.label != first.rows.columns.label:
        raise RecipeError(
            f"--methods: {setting.recipe.output.parent.name} predicts the column {run.rows.columns.label!r}, the first"
            f" method {first.rows.columns.label!r}. Set data.label for all."
        )
    hashes, expected = run.rows.split_hashes(), first.rows.split_hashes()
    if any(hashes.get(name) != expected.get(name) for name in ("selection", "test")):
        raise RecipeError(
            f"--methods: {setting.recipe.output.parent.name}/{setting.name} has other selection or test rows than the"
            " first method. Leave out what changes them, or set it for all."
        )


def _check_numbers(shared: Recipe, methods: Sequence[str], rates: Sequence[float], faults: Faults) -> None:
    if not methods or not all(methods):
        faults.add(RecipeError("--methods is empty, or has an empty part; expected a list such as lora,dora,bidora."))
    folders = [folder_name(label) for label in methods]
    for label, folder in zip(methods, folders, strict=True):
        if len(folder.encode()) > LONGEST:
            faults.add(RecipeError(f"--methods: {label[:40]!r}… would have a folder with too long a name. Vary less."))
        elif folders.count(folder) > 1:
            faults.add(RecipeError(f"--methods: {label!r} stands twice. Leave one out."))
    if not rates or not all(0 < rate < math.inf for rate in rates) or len({f"{r:g}" for r in rates}) < len(rates):
        faults.add(RecipeError(f"--rates {rates}: expected different factors above 0, such as 0.4,1,2.5."))
    if shared.push_to_hub is not None:
        faults.add(RecipeError("push_to_hub is of a single run. Leave it out, and push the run that is chosen."))
    if shared.report_to not in ([], ["none"]):
        faults.add(RecipeError("report_to is of a single run. Leave it out."))
    faults.raise_any()


def value_at(recipe: Recipe, key: str) -> float:
    """Return the number at a key of a section."""
    section, name = key.split(".")
    return float(getattr(getattr(recipe, section), name))
