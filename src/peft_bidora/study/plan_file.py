"""What a comparison's folder says that it is for: begun, resumed or joined by that alone."""

import json
from pathlib import Path
from typing import Any

from peft_bidora.errors import CheckpointError, Faults, InUseError
from peft_bidora.recipe import folder
from peft_bidora.recipe.load import flat
from peft_bidora.recipe.output import in_use
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.study_folder import clear_runs, is_begun
from peft_bidora.study.plan import Plan
from peft_bidora.study.workers import is_worked_on

PLAN, RESULT = "plan.json", "comparison.json"
JOINED = ".joined"  # the folders that joined processes hold
ANEW = "Remove the folder, and start anew"
PATHS = ("output", "data.train", "data.test", "data.selection")


def check_same(plan: Plan) -> None:
    """Raise CheckpointError where a run that was begun had another recipe or other rows; all faults at once."""
    faults = Faults()
    for variant in plan.variants:
        rows: dict[str, Any] = {}  # which no rate changes
        for setting in variant.settings:
            if not is_begun(setting.recipe.output):
                continue
            split = ",".join(f"{key}={value}" for key, value in setting.values.items() if key != "rate")
            if split not in rows:
                rows[split] = prepare(setting.recipe).rows
            faults.check(folder.check_same_run, setting.recipe, rows[split])
    faults.raise_any()


def check_joined(plan: Plan) -> None:
    """Raise CheckpointError unless a plan is that of the comparison which is joined."""
    known, told = folder.read_object(plan.output / PLAN, ()), _told(plan)
    differing = [key for key in told if key != "recipe" and json.dumps(known.get(key)) != json.dumps(told[key])]
    old, new = known.get("recipe", told["recipe"]), told["recipe"]  # older versions did not keep it
    differing += sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        raise CheckpointError(
            f"The comparison in {plan.output} has other {', '.join(differing)}. Give the command that began it, with"
            " --join."
        )


def _told(plan: Plan) -> dict[str, Any]:
    """Return a plan as its folder keeps it; files of data may lie elsewhere on another machine."""
    recipe = plan.variants[0].settings[0].recipe
    said = flat(recipe.model_dump(mode="json", by_alias=True, exclude_none=True))
    return {
        "recipe": {key: value for key, value in said.items() if key not in PATHS},
        "folders": {variant.label: plan.folder(variant).name for variant in plan.variants},
        "runs": {
            plan.folder(variant).name: [setting.name for setting in variant.settings] for variant in plan.variants
        },
        "rates": plan.rates,
        "seeds": plan.seeds,
        "folds": plan.folds,
        "tuning_seeds": plan.tuning_seeds,
    }


def require_free(output: Path) -> None:
    """Raise InUseError where another process works on runs that are to be replaced, or may begin one."""
    path = output / PLAN
    known = folder.read_object(path, ("runs",), ANEW)["runs"] if path.is_file() else {}
    folders = [output / name / run for name, runs in known.items() for run in (".", *runs)]
    if is_worked_on(output, JOINED) or any(map(in_use, folders)):
        raise InUseError(
            f"output={output}: another process still works on its runs. End it, let it end, or name another output."
        )


def begin(plan: Plan, resume: bool) -> None:
    """Write what the folder is for; remove what another comparison left."""
    told = _told(plan)
    path = plan.output / PLAN
    if path.is_file():
        known = folder.read_object(path, ("folders", "runs", "folds"), ANEW)
        if not resume:
            for name, runs in known["runs"].items():
                clear_runs(plan.output / name, runs)
                log_file(plan.output / name).unlink(missing_ok=True)
        elif known["folds"] != plan.folds:
            raise CheckpointError(
                f"The comparison in {plan.output} has folds={known['folds']}, not {plan.folds}. Put it back, or start"
                " anew with --overwrite."
            )
        else:
            for name, runs in known["runs"].items():
                if missing := sorted(set(runs) - set(told["runs"].get(name, runs))):
                    raise CheckpointError(
                        f"The comparison in {plan.output} has the run {name}/{missing[0]} too: it is resumed with the"
                        " rates and seeds that it began with, or more. Add them, or start anew with --overwrite."
                    )
            told["folders"] = known["folders"] | told["folders"]
            told["runs"] = known["runs"] | {
                name: [*dict.fromkeys([*known["runs"].get(name, []), *runs])] for name, runs in told["runs"].items()
            }
    for name in (RESULT, "comparison.csv", "comparison.html"):  # of what was compared before
        (plan.output / name).unlink(missing_ok=True)
    folder.write_json(path, told)


def log_file(variant_folder: Path) -> Path:
    """Return the file of what the processes of a variant say."""
    return variant_folder.with_name(f"{variant_folder.name}.log")
