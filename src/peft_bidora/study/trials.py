"""The trials of `tune` on disk, which several processes may work on: optuna's journal, and who has which trial."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from peft_bidora.errors import BiDoRAError, CheckpointError
from peft_bidora.recipe.output import in_use
from peft_bidora.training.ranks import APART

TRIALS, LOCK, CLAIM = "optuna-trials.log", ".optuna-trials.lock", ".optuna-claim.lock"
WORKER = ".trial-under-way"
WATCHED = 5  # trials before any is given up early


def optuna_library() -> Any:
    """Return optuna, an extra.

    Raises:
        BiDoRAError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise BiDoRAError("tune needs optuna, which is not installed: pip install 'peft-bidora[tune]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(output: Path, identity: str, direction: str) -> Any:
    """Return optuna's study of the trials in a folder, begun or not.

    Args:
        output: the folder.
        identity: what trials that may be mixed have in common.
        direction: maximize or minimize.

    Raises:
        CheckpointError: the trials that are there are damaged, or are others.
    """
    optuna = optuna_library()
    path, lock = output / TRIALS, FileLock(output / LOCK)
    with lock:
        if path.is_file() and not (written := path.read_bytes()).endswith(b"\n"):  # a record that a kill has cut
            path.write_bytes(written[: written.rfind(b"\n") + 1])
    try:
        # Its own lock outlives a process that is killed; this one is the system's.
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=lock)
        storage = optuna.storages.JournalStorage(backend)
        names = [study.study_name for study in storage.get_all_studies()]
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). Put it back from a copy, or start anew with --overwrite."
        ) from None
    if any(name != identity for name in names):
        raise CheckpointError(
            f"The trials in {output} are of another recipe or other rows. Put them back, or use --overwrite."
        )
    return optuna.create_study(
        storage=storage,
        study_name=identity,
        load_if_exists=True,
        direction=direction,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=WATCHED),
    )


def claim(study: Any, worker: Path, trials: int, seed: int) -> tuple[Any, bool]:
    """Return a trial for this process to try, None where there is none, and whether all are over.

    The trials that killed processes left are failed first; those under way at others count, so that no more are begun
    than there should be.

    Args:
        study: of `open_study`.
        worker: of `working`; a trial whose worker's folder nobody holds was left by a kill.
        trials: in all.
        seed: of the draws; of each process and each trial it is another.
    """
    optuna = optuna_library()
    states = optuna.trial.TrialState
    output, number = worker.parent, int(worker.name.rpartition("-")[2])
    with FileLock(output / CLAIM):
        under_way = 0
        for trial in study.get_trials(states=(states.RUNNING,)):
            owner = trial.user_attrs.get("worker")
            if owner in (None, worker.name) or not in_use(output / owner):
                with suppress(ValueError):  # it told its value, and ended since
                    study.tell(trial.number, state=states.FAIL)
            else:
                under_way += 1
        ended = len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))
        if ended + under_way >= trials:
            return None, under_way == 0
        study.sampler = optuna.samplers.TPESampler(seed=(seed + ended + APART * number) % 2**32, constant_liar=True)
        trial = study.ask()
        trial.set_user_attr("worker", worker.name)
        return trial, False
