"""Who has which trial: no more are begun than there should be, and what a kill leaves is failed."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from peft_bidora.errors import CheckpointError, InUseError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.output import held
from peft_bidora.study.trials import TRIALS, WORKER, claim, open_study
from peft_bidora.study.tune import tune
from peft_bidora.study.workers import sweep, working

Make = Callable[..., Path]
RUNNING, FAIL, COMPLETE = (optuna.trial.TrialState[name] for name in ("RUNNING", "FAIL", "COMPLETE"))


def states(study: optuna.Study) -> list[optuna.trial.TrialState]:
    return [trial.state for trial in study.get_trials()]


def test_trials_under_way_count_so_that_no_more_are_begun(tmp_path: Path) -> None:
    study = open_study(tmp_path, "mine", "maximize")
    with working(tmp_path, WORKER) as one, working(tmp_path, WORKER) as two:
        assert [path.name for path in (one, two)] == [".trial-under-way-0", ".trial-under-way-1"]
        first, _ = claim(study, one, 2, 0)
        second, _ = claim(study, two, 2, 0)
        with working(tmp_path, WORKER) as three:
            assert claim(study, three, 2, 0) == (None, False)
        study.tell(first, 0.5)
        assert claim(study, one, 2, 0) == (None, False)  # the other is still at its own
        study.tell(second, 0.5)
        assert claim(study, one, 2, 0) == (None, True)
    assert not list(tmp_path.glob(".trial-under-way-*"))


def test_error_of_the_work_is_not_taken_for_a_folder_in_use(tmp_path: Path) -> None:
    with pytest.raises(InUseError, match="of the work"), working(tmp_path, WORKER):
        raise InUseError("of the work")
    assert not list(tmp_path.glob(".trial-under-way-*"))


def test_trial_whose_process_is_gone_is_failed_and_another_begun(tmp_path: Path) -> None:
    study = open_study(tmp_path, "mine", "maximize")
    with working(tmp_path, WORKER) as gone:
        claim(study, gone, 1, 0)
        (gone / "run").mkdir()
        with working(tmp_path, WORKER) as other:
            assert claim(study, other, 1, 0) == (None, False)
    with working(tmp_path / "elsewhere", WORKER) as _, held(tmp_path / ".trial-under-way-7"):
        trial, _ = claim(study, tmp_path / ".trial-under-way-7", 1, 0)
    assert trial.number == 1
    assert states(study) == [FAIL, RUNNING]
    assert (gone / "run").is_dir()
    sweep(tmp_path, WORKER)
    assert not list(tmp_path.glob(".trial-under-way-*"))


def test_trial_left_by_a_killed_process_of_the_same_folder_is_failed(tmp_path: Path) -> None:
    study = open_study(tmp_path, "mine", "maximize")
    with working(tmp_path, WORKER) as mine:
        claim(study, mine, 3, 0)
        claim(study, mine, 3, 0)
    assert states(study) == [FAIL, RUNNING]


def test_processes_draw_other_settings_and_a_resumed_one_the_same(tmp_path: Path) -> None:
    def drawn(folder: Path, name: str, fail_first: bool) -> float:
        study = open_study(tmp_path / folder, "mine", "maximize")
        worker = tmp_path / folder / f".trial-under-way-{name}"
        with held(worker):
            if fail_first:
                claim(study, worker, 3, 4)
            trial, _ = claim(study, worker, 3, 4)
            return float(trial.suggest_float("x", 0, 1))

    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first = drawn(Path("a"), "0", False)
    assert first == drawn(Path("b"), "0", True)  # what a kill has ended moves no draw
    assert first != drawn(Path("c"), "1", False)


def test_trials_are_joined_where_they_were_begun(make_recipe: Make) -> None:
    recipe = make_recipe()
    with pytest.raises(CheckpointError, match=r"holds no trials to join\. Begin them by this command without --join"):
        tune(recipe, [], trials=1, join=True)
    result = tune(recipe, [], trials=1)
    assert tune(recipe, [], trials=2, join=True) == result  # as many as they were begun with
    assert len(tune(recipe, [], trials=2, resume=True)["trials"]) == 2
    with pytest.raises(CheckpointError, match="are of another recipe"):
        tune(recipe, ["retrain.steps=6"], trials=3, join=True)
    output = load_recipe(recipe).output
    with working(output, WORKER), pytest.raises(InUseError, match="a process that joined still works on its trials"):
        tune(recipe, [], trials=1, overwrite=True)
    assert len(tune(recipe, [], trials=2, resume=True)["trials"]) == 2  # which were left alone
    (output / TRIALS).write_text("")  # of a process that has just begun
    with pytest.raises(CheckpointError, match="holds no trials to join"):
        tune(recipe, [], trials=1, join=True)


def test_trial_that_ended_as_its_process_was_killed_keeps_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(tmp_path, "mine", "maximize")
    with working(tmp_path, WORKER) as gone:
        trial, _ = claim(study, gone, 1, 0)
    snapshot = study.get_trials()
    study.tell(trial, 0.5)
    listed = study.get_trials
    monkeypatch.setattr(study, "get_trials", lambda states: snapshot if states == (RUNNING,) else listed(states=states))
    with working(tmp_path, WORKER) as other:
        assert claim(study, other, 1, 0) == (None, True)
    assert [each.value for each in listed()] == [0.5]
