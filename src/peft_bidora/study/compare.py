"""Compare methods over seeds or folds: each at the learning rate that is best for it on selection rows."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import sleep
from typing import Any

from filelock import FileLock

from peft_bidora.errors import BiDoRAError, CheckpointError, InUseError, NonFiniteError, RecipeError
from peft_bidora.recipe import folder
from peft_bidora.recipe.lane_settings import Setting
from peft_bidora.recipe.lanes import run_lanes
from peft_bidora.recipe.output import held, in_use
from peft_bidora.recipe.run import run
from peft_bidora.recipe.study_folder import STOPPED, check_study, is_begun, is_over
from peft_bidora.study.jobs import Job, Tell, run_jobs
from peft_bidora.study.plan import Plan
from peft_bidora.study.plan_file import JOINED, PLAN, RESULT, begin, check_joined, check_same, log_file, require_free
from peft_bidora.study.summary import Metrics, require_rates, summarise
from peft_bidora.study.workers import sweep, working

logger = logging.getLogger(__name__)
RESULT_LOCK = ".comparison.lock"
AGAIN = "Give the command that began it with --resume: what was trained is kept"
KEYS = ("metric", "lower_is_better", "methods", "reference", "notes", "rates", "seeds", "folds")
POLL_SECONDS = 2.0
ELSEWHERE = "elsewhere"
Watch = Callable[[str, str, int, int, list[float]], None]


def compare(
    plan: Plan,
    *,
    resume: bool = False,
    overwrite: bool = False,
    join: bool = False,
    jobs: int = 1,
    at_once: int | None = None,
    announce: Callable[[], None] = lambda: None,
    watch: Watch = lambda *_: None,
) -> dict[str, Any]:
    """Train all runs of a plan and return what became of them, as comparison.json holds it.

    Each variant is trained by a process of its own, its runs side by side, so that its time and memory are its own; the
    runs of full fine-tuning have a process each. A run that was finished before a kill is not trained again. Where few
    seeds choose the rates, they are trained first, and then the others at the rate that was chosen.

    Args:
        plan: what to train.
        resume: go on with the comparison in the plan's folder; variants, seeds and rates may be added.
        overwrite: replace the comparison that is there.
        join: help another process, on this machine or on one that sees the folder, which began this comparison: each
            takes what no other has, and what a killed one leaves.
        jobs: processes side by side.
        at_once: most lanes of a process; None for what fits the memory.
        announce: is called once nothing is at fault, before the first run.
        watch: is told label, phase, step, steps and the best selection metrics of what is trained.

    Raises:
        BiDoRAError: the folder is taken, or a variant could not be trained; what was trained is kept.
    """
    if jobs < 1 or (at_once is not None and at_once < 1):
        raise RecipeError(f"jobs={jobs}, at_once={at_once}: expected numbers from 1 up.")
    if not join:
        check_study(plan.output, resume, overwrite, PLAN)
    elif not (plan.output / PLAN).is_file():
        raise CheckpointError(f"{plan.output} holds no comparison to join. Begin it by this command without --join.")
    with working(plan.output, JOINED) if join else held(plan.output):
        if not join:
            check_study(plan.output, resume, overwrite, PLAN)
        if overwrite:
            require_free(plan.output)
        if resume or join:
            check_same(plan)
        announce()
        if join:
            check_joined(plan)
        else:
            begin(plan, resume)
        for variant in plan.variants:
            if all(is_over(setting.recipe.output) for setting in variant.settings):
                watch(variant.label, "done", 1, 1, [])  # before a kill
        while waiting := _open_jobs(plan, at_once):
            _run_free(waiting, jobs, watch)
        # A run that is stopped may change the choice of a rate.
        while waiting := _open_jobs(plan, at_once, require_rates(plan, _metrics(plan))):
            _run_free(waiting, jobs, watch)
        result = summarise(plan, _metrics(plan))
        with FileLock(plan.output / RESULT_LOCK):  # workers may end at the same time
            folder.write_json(plan.output / RESULT, result)
        sweep(plan.output, JOINED)
        return result


def read_comparison(output: Path) -> dict[str, Any]:
    """Return what `compare` found.

    Raises:
        CheckpointError: the folder holds no comparison, or one that is not finished or damaged.
    """
    if not (output / RESULT).is_file():
        state = "a comparison that is not finished" if (output / PLAN).is_file() else "no comparison"
        raise CheckpointError(f"{output} holds {state}. {AGAIN}")
    return folder.read_object(output / RESULT, KEYS, AGAIN)


def _run_free(waiting: Sequence[Job], jobs: int, watch: Watch) -> None:
    """Run the jobs that no other process has, or wait a little; raise BiDoRAError with all faults where some failed."""
    free = [job for job in waiting if not in_use(job.folder)]
    for job in waiting:
        if job not in free:
            watch(job.label, ELSEWHERE, 0, 1, [])
    if not free:
        sleep(POLL_SECONDS)
    failed = run_jobs(free, jobs, watch)
    # Between the look and the start another process may have been quicker.
    faults = [fault for error in failed.values() if not isinstance(error, InUseError) for fault in error.faults]
    if faults:
        raise BiDoRAError(*faults, "What was trained is kept. Mend that, then give the same command with --resume.")


def _open_jobs(plan: Plan, at_once: int | None, rates: Mapping[str, str] | None = None) -> list[Job]:
    """Return what is not done yet of the runs that choose the rates or, once these are chosen, of those at them."""
    jobs = []
    for variant in plan.variants:
        settings = [
            setting
            for setting in variant.settings
            if (plan.tunes(setting) if rates is None else setting.values["rate"] == rates[variant.label])
        ]
        missing = [setting for setting in settings if not is_over(setting.recipe.output)]
        log = log_file(plan.folder(variant))
        if missing and variant.side_by_side:
            # With those that were begun before: they are a part of the study of lanes.
            lanes = [each for each in variant.settings if each in settings or is_begun(each.recipe.output)]
            output = plan.folder(variant)
            jobs.append(Job(variant.label, _train_lanes, (lanes, output, at_once), log, output))
        elif missing:
            jobs += [
                Job(f"{variant.label} {setting.name}", _train_alone, (setting,), log, setting.recipe.output)
                for setting in missing
            ]
    return jobs


def _train_lanes(tell: Tell, settings: Sequence[Setting], output: Path, at_once: int | None) -> None:
    run_lanes(settings, output, resume=(output / folder.STUDY).is_file(), at_once=at_once, watch=tell)


def _train_alone(tell: Tell, setting: Setting) -> None:
    output = setting.recipe.output
    if is_over(output):  # by another process, a moment ago
        return
    tell("train", 0, 1, [])
    try:
        run(setting.recipe, resume=is_begun(output))
    except NonFiniteError as error:
        folder.write_json(output / STOPPED, {"stopped": str(error)})


def _metrics(plan: Plan) -> Metrics:
    """Return the metrics of each run that was trained, by label and name; None where it was stopped."""
    found: dict[tuple[str, str], dict[str, Any] | None] = {}
    for variant in plan.variants:
        for setting in filter(lambda each: is_over(each.recipe.output), variant.settings):
            path = setting.recipe.output / folder.METRICS
            found[variant.label, setting.name] = folder.read_object(path, ("test",)) if path.is_file() else None
    return found
