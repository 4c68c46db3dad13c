"""What a study of lanes varies: `seed=0..15 retrain.learning_rate=1e-3,5e-3` stands for 32 runs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from peft_bidora.errors import Faults, RecipeError
from peft_bidora.recipe.load import flat, load_recipe
from peft_bidora.recipe.options import phase_steps
from peft_bidora.recipe.prepare import Prepared
from peft_bidora.recipe.schema import Recipe

RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 4096  # lanes of a study
LONGEST = 200  # bytes of a folder's name
# What lanes of one group may differ in; all else is one pass's, or one tensor's, shape.
FREE = {
    *("seed", "output", "method", "data", "select_by", "classification.class_weights"),
    *("adapter.alpha", "adapter.orthogonality", "retrain.from"),
    *(
        f"{phase}.{key}"
        for phase in ("search", "retrain")
        for key in ("learning_rate", "weight_decay", "schedule", "warmup_fraction", "max_grad_norm", "steps", "epochs")
    ),
    *(
        f"search.{key}"
        for key in (
            *("upper_learning_rate", "upper_weight_decay", "upper_schedule", "xi", "penalty"),
            *("finite_difference_radius", "settled"),
        )
    ),
}


# Of these a run is not checked against model and data: those that differ in nothing else have the same rows.
UNCHECKED = FREE - {
    *("seed", "method", "data", "select_by", "classification.class_weights"),
    *(f"{phase}.{key}" for phase in ("search", "retrain") for key in ("steps", "epochs")),
}


@dataclass(frozen=True)
class Setting:
    """A run of a study.

    Args:
        name: of its folder.
        values: what it varies, by the recipe's key.
        recipe: of the whole run.
    """

    name: str
    values: dict[str, str]
    recipe: Recipe


def load_settings(path: Path, overrides: Sequence[str], lanes: Sequence[str]) -> list[Setting]:
    """Return the runs of a study: every combination of the values of each key.

    Args:
        path: the recipe that all share.
        overrides: `key=value`, of all.
        lanes: `key=list`, one or several in a text: values with commas between, or a range of whole numbers, `0..15`.

    Raises:
        RecipeError: a list or a value of it is wrong, or a run trains in full.
    """
    shared = load_recipe(path, overrides)
    lists = _lists(lanes)
    faults, settings = Faults(), []
    for values in product(*lists.values()):
        named = dict(zip(lists, values, strict=True))
        name = ",".join(f"{key}={value}" for key, value in named.items())
        output = f"output={shared.output / folder_name(name)}"
        recipe = faults.check(load_recipe, path, [*overrides, *(f"{k}={v}" for k, v in named.items()), output])
        if recipe is None:
            continue
        for fault in _unfit(recipe):
            faults.add(RecipeError(fault))
        settings.append(Setting(name, named, recipe))
    folders = [setting.recipe.output.name for setting in settings]
    for setting, folder in zip(settings, folders, strict=True):
        if len(folder.encode()) > LONGEST:
            faults.add(
                RecipeError(f"--lanes: the folder {folder[:40]}… would have a name that is too long. Vary less.")
            )
        elif folders.count(folder) > 1:
            faults.add(
                RecipeError(f"--lanes: {setting.name} would share the folder {folder} with another. Rename one.")
            )
    faults.raise_any()
    return settings


def _unfit(recipe: Recipe) -> list[str]:
    """Return what of a recipe lanes do not read."""
    faults = []
    if recipe.method == "full":
        faults.append("method=full trains the base model, which lanes share. Train it by itself.")
    if recipe.push_to_hub is not None:
        faults.append("push_to_hub is of a single run. Leave it out, and push the lane that is chosen.")
    if recipe.report_to not in ([], ["none"]):
        faults.append("report_to is of a single run: each lane writes its metrics.jsonl. Leave it out.")
    return faults


def grouped(prepared: Mapping[str, Prepared]) -> list[list[str]]:
    """Return the names of the runs that can be trained side by side, group by group.

    LoRA and DoRA have a retrain phase alone; they join the first group of BiDoRA with the same one.

    Args:
        prepared: each run by its name.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for name, run in prepared.items():
        searches = groups.setdefault(_shape(run, "retrain"), {})
        searches.setdefault(_shape(run, "search") if run.recipe.method == "bidora" else "", []).append(name)
    found = []
    for searches in groups.values():
        without = searches.pop("", [])
        first, *others = list(searches.values()) or [[]]
        found += [[*first, *without], *others]
    order = {name: position for position, name in enumerate(prepared)}
    return [sorted(names, key=order.__getitem__) for names in found]


def _shape(run: Prepared, phase: str) -> str:
    """Return what the runs of a group have in common in a phase."""
    recipe, rows = run.recipe, run.rows
    other = "search" if phase == "retrain" else "retrain"
    keys = flat(recipe.model_dump(mode="json", by_alias=True))
    shared = {
        key: value
        for key, value in keys.items()
        if not key.startswith(f"{other}.") and not any(key == free or key.startswith(f"{free}.") for free in FREE)
    }
    of_phase = len(rows.parts["lower"]) + (len(rows.parts["upper"]) if phase == "retrain" else 0)
    shape = {
        "steps": phase_steps(getattr(recipe, phase), of_phase),
        "outputs": rows.task.outputs,
        "labels": type(rows.task).__name__,  # one or several a row
        "max_length": run.max_length,
        "response": phase == "search" and recipe.search.xi == "adam",
        "selected": len(rows.parts["selection"]) > 0,
    }
    return repr(sorted((shared | shape).items(), key=str))


def _lists(lanes: Sequence[str]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    faults, count = [], 1
    for text in " ".join(lanes).split():
        key, equals, listed = text.partition("=")
        values = _values(listed)
        if (backwards := RANGE.fullmatch(listed)) and int(backwards.group(1)) > int(backwards.group(2)):
            faults.append(f"--lanes {text!r}: the range runs backwards; expected the smaller number first.")
        elif not key or not equals or not all(values):
            faults.append(
                f"--lanes {text!r}: expected key=list, such as seed=0..15 or method=lora,dora; blanks stand"
                " between keys alone."
            )
        elif key == "output":
            faults.append(f"--lanes {text!r}: each lane has a folder of its own in the recipe's output. Leave it out.")
        elif key in lists:
            faults.append(f"--lanes {text!r}: {key} is given already. Put all of its values into one list.")
        elif len(set(values)) < len(values):
            faults.append(f"--lanes {text!r}: a value stands twice. Leave one out.")
        lists[key] = values
        count *= max(1, len(values))
    if not faults and not lists:
        faults.append("--lanes is empty; expected key=list, such as seed=0..15.")
    if not faults and count > MOST:
        faults.append(f"--lanes: more than {MOST:,} lanes. Vary less at once.")
    if faults:
        raise RecipeError(*faults)
    return lists


def _values(listed: str) -> list[str]:
    if (found := RANGE.fullmatch(listed)) is None:
        return listed.split(",")
    first, last = int(found.group(1)), int(found.group(2))
    return [str(number) for number in range(first, min(last, first + MOST) + 1)] or [""]


def folder_name(name: str) -> str:
    """Return a name that every file system takes."""
    return re.sub(r"[^\w.,=+-]", "_", name)
