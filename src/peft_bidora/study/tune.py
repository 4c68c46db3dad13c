"""Choose settings by trials: optuna draws them, selection rows judge them, test rows are not read.

Reference: Akiba et al. (optuna), arXiv:1907.10902; its sampler by default is the tree-structured Parzen estimator.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import Any

from filelock import FileLock
from transformers import TrainerCallback

from peft_bidora.errors import BiDoRAError, CheckpointError, InUseError, NonFiniteError, RecipeError
from peft_bidora.recipe import folder
from peft_bidora.recipe.load import dump_recipe, flat, load_recipe
from peft_bidora.recipe.output import disk_faults, held
from peft_bidora.recipe.prepare import Prepared, prepare
from peft_bidora.recipe.run import make_trainer
from peft_bidora.recipe.schema import Recipe
from peft_bidora.recipe.study_folder import check_study
from peft_bidora.study.trials import CLAIM, TRIALS, WORKER, claim, open_study, optuna_library
from peft_bidora.study.workers import is_worked_on, sweep, working

RESULT, BEST, RUN = "tune.json", "best.yaml", "run"
POLL_SECONDS = 1.0
LOWER_STEPS = (1, 2, 4, 8)
FACTOR = 10.0  # how far a learning rate may go from the recipe's, either way


@dataclass(frozen=True)
class Tried:
    """A trial.

    Args:
        number: from 0 up.
        overrides: what of the recipe was otherwise.
        value: its best selection metric; None where it has none.
        state: complete, pruned (given up, for others were better at that step) or failed (not finite, or refused).
        reason: why it failed.
    """

    number: int
    overrides: tuple[str, ...]
    value: float | None
    state: str
    reason: str = ""


def tune(
    path: Path,
    overrides: Sequence[str],
    *,
    trials: int,
    resume: bool = False,
    overwrite: bool = False,
    join: bool = False,
    watch: Callable[[Tried], None] = lambda _: None,
) -> dict[str, Any]:
    """Try settings near a recipe's, and write the recipe of the best as best.yaml.

    Both learning rates, K, the upper fraction and the rank are drawn; of other methods than bidora the learning rate
    and the rank. The scaling alpha / rank stays the recipe's.

    Args:
        path: the recipe; its output is the folder of the trials.
        overrides: `key=value`, of all trials.
        trials: in all, those before a kill among them; with join, the number that they were begun with is.
        resume: go on with the trials that are there.
        overwrite: replace them.
        join: help another process, on this machine or on one that sees the folder, with the trials that it began.
        watch: is told each trial at its end.

    Raises:
        BiDoRAError: the recipe or its data are at fault, optuna is missing, or no trial came to an end.
    """
    optuna_library()
    recipe = load_recipe(path, overrides)
    prepared = prepare(recipe)
    if not len(prepared.rows.parts["selection"]) or not recipe.select_best:
        raise RecipeError("tune chooses on selection rows. Set data.selection_fraction, and select_best=true.")
    output = recipe.output
    if not join:
        check_study(output, resume, overwrite, TRIALS)
    elif not (output / TRIALS).is_file() or not (output / TRIALS).stat().st_size:
        raise CheckpointError(f"{output} holds no trials to join. Begin them by this command without --join.")
    with nullcontext() if join else held(output), disk_faults(output):
        if not join:
            check_study(output, resume, overwrite, TRIALS)
            _begin(output, resume)
        study = open_study(output, _identity(prepared), _direction(prepared))
        if join:  # as many as the process that began them was told
            trials = study.user_attrs.get("trials", trials)
        else:
            study.set_user_attr("trials", trials)
        with working(output, WORKER) as worker:
            over = False
            while not over:
                trial, over = claim(study, worker, trials, recipe.seed)
                if trial is not None:
                    watch(_try(study, trial, path, overrides, worker / RUN))
                elif not over:
                    sleep(POLL_SECONDS)  # others are still at theirs
        sweep(output, WORKER)
        with FileLock(output / CLAIM):  # workers may end at the same time
            return _conclude(study, path, overrides, output, prepared)


def draw(trial: Any, recipe: Recipe) -> list[str]:
    """Return the overrides of a trial.

    Args:
        trial: optuna's, which draws.
        recipe: what is drawn near to.
    """
    rate = trial.suggest_float("learning_rate_factor", 1 / FACTOR, FACTOR, log=True)
    rank = trial.suggest_categorical("rank", [4, 8, 16, 32])
    alpha = max(1, round(recipe.adapter.alpha / recipe.adapter.rank * rank))
    drawn = [f"retrain.learning_rate={recipe.retrain.learning_rate * rate:.6g}"]
    if recipe.method != "full":
        drawn += [f"adapter.rank={rank}", f"adapter.alpha={alpha}"]
    if recipe.method == "bidora":
        most = recipe.search.steps or max(LOWER_STEPS)  # more would leave no upper step
        steps = [each for each in LOWER_STEPS if each <= most]
        upper = trial.suggest_float("upper_learning_rate_factor", 1 / FACTOR, FACTOR, log=True)
        drawn += [
            f"search.learning_rate={recipe.search.learning_rate * rate:.6g}",
            f"search.upper_learning_rate={recipe.search.upper_learning_rate * upper:.6g}",
            f"search.lower_steps={trial.suggest_categorical('lower_steps', steps)}",
            f"data.upper_fraction={trial.suggest_float('upper_fraction', 0.1, 0.5, step=0.05):.2f}",
        ]
    return drawn


class _Judge(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Tell a trial the selection metric at each evaluation of the last phase, and end it where others were better."""

    def __init__(self, trial: Any, metric: str, better: Callable[[float, float], float]) -> None:
        self._trial, self._metric, self._better = trial, metric, better
        self.best: float | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        if Path(args.output_dir).name != "retrain":
            return
        value = float(metrics[f"eval_{self._metric}"])
        self.best = value if self.best is None else self._better(self.best, value)
        self._trial.report(self.best, state.global_step)
        if self._trial.should_prune():
            raise optuna_library().TrialPruned


def _begin(output: Path, resume: bool) -> None:
    """Remove what was concluded before, and the trials too unless they go on.

    Raises:
        InUseError: others still work on trials that are to be removed.
    """
    if not resume and is_worked_on(output, WORKER):
        raise InUseError(f"output={output}: a process that joined still works on its trials. End it, or let it end.")
    for name in (RESULT, BEST, *(() if resume else (TRIALS,))):
        (output / name).unlink(missing_ok=True)
    (output / TRIALS).touch()  # first of all, by which the folder is known


def _try(study: Any, trial: Any, path: Path, overrides: Sequence[str], output: Path) -> Tried:
    """Train a trial in a folder, which is removed again, and tell the study what came of it."""
    try:
        return _tried(study, trial, path, overrides, output)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _tried(study: Any, trial: Any, path: Path, overrides: Sequence[str], output: Path) -> Tried:
    optuna = optuna_library()
    drawn = draw(trial, load_recipe(path, overrides))
    trial.set_user_attr("overrides", drawn)
    shutil.rmtree(output, ignore_errors=True)  # of a trial that was killed
    try:
        prepared = prepare(load_recipe(path, [*overrides, *drawn, f"output={output}"]))
    except BiDoRAError as error:  # such as an upper fraction that leaves a class out
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return Tried(trial.number, tuple(drawn), None, "failed", str(error))
    prepared.recipe.output.mkdir()
    trainer = make_trainer(prepared)
    better = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    judge = _Judge(trial, _metric(prepared), better)
    trainer.add_callback(judge)
    try:
        trainer.train()
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return Tried(trial.number, tuple(drawn), judge.best, "pruned")
    except NonFiniteError as error:  # pruned is what its sampler takes for bad; a trial that fails teaches it nothing
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return Tried(trial.number, tuple(drawn), None, "failed", str(error))
    if judge.best is None or not math.isfinite(judge.best):  # of outputs that are not finite; optuna would try for ever
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return Tried(trial.number, tuple(drawn), None, "failed", f"the selection {_metric(prepared)} is {judge.best}")
    study.tell(trial, judge.best)
    return Tried(trial.number, tuple(drawn), judge.best, "complete")


def _conclude(study: Any, path: Path, overrides: Sequence[str], output: Path, prepared: Prepared) -> dict[str, Any]:
    optuna = optuna_library()
    if not study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        raise BiDoRAError(
            f"No trial in {output} came to an end. See why above; lower the recipe's learning rates, or add rows."
        )
    best = study.best_trial
    chosen = load_recipe(path, [*overrides, *best.user_attrs["overrides"], f"output={output / 'best'}"])
    folder.write_text(output / BEST, dump_recipe(chosen))
    result = {
        "metric": _metric(prepared),
        "best": {"trial": best.number, "value": best.value, "overrides": best.user_attrs["overrides"]},
        "recipe": str(output / BEST),
        "trials": [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "overrides": trial.user_attrs.get("overrides", []),
            }
            for trial in study.trials
        ],
    }
    folder.write_json(output / RESULT, result)
    return result


def _metric(prepared: Prepared) -> str:
    task = prepared.rows.task
    return (prepared.recipe.select_by or task.metrics[0]) if task.has_logits else "loss"


def _direction(prepared: Prepared) -> str:
    metric = _metric(prepared)
    return "minimize" if metric == "loss" or metric in prepared.rows.task.lower_is_better else "maximize"


def _identity(prepared: Prepared) -> str:
    """Return what trials that may be mixed have in common: the recipe and its rows."""
    recipe = prepared.recipe.model_copy(update={"output": Path()})
    # Keys without a value say nothing: one that comes with a later version leaves trials what they were.
    said = flat(recipe.model_dump(mode="json", by_alias=True, exclude_none=True))
    told = [json.dumps(said, sort_keys=True), *sorted(prepared.rows.split_hashes().values())]
    return sha256("".join(told).encode()).hexdigest()[:16]
