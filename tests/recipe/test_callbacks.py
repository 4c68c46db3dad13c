"""The clock that outlives a kill and the last evaluation."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl

from peft_bidora.recipe.callbacks import EvaluateLastStep, ProgressLines, Stopwatch
from peft_bidora.recipe.folder import write_json


def test_stopwatch_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    write_json(path, {"seconds": 1000.0})
    watch = Stopwatch(path)
    assert 1000 <= watch.seconds() < 1100
    watch.on_save(None, None, None)
    assert Stopwatch(path).seconds() > 1000


def test_stopwatch_of_a_new_run_starts_at_zero(tmp_path: Path) -> None:
    assert Stopwatch(tmp_path / "seconds.json").seconds() < 100


def test_last_step_is_evaluated_at_any_cadence() -> None:
    def asked(step: int, strategy: str, stop: bool = False) -> bool:
        control = TrainerControl(should_training_stop=stop)
        state = SimpleNamespace(global_step=step, max_steps=7)
        EvaluateLastStep().on_step_end(SimpleNamespace(eval_strategy=strategy), state, control)
        return control.should_evaluate

    assert [asked(6, "steps"), asked(7, "steps"), asked(7, "no")] == [False, True, False]
    assert [asked(6, "steps", stop=True), asked(6, "no", stop=True)] == [True, False]


def test_evaluation_before_the_first_logged_loss_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    state = SimpleNamespace(global_step=2, max_steps=9, log_history=[{"eval_loss": 0.5}])
    args = SimpleNamespace(eval_strategy="steps", output_dir="run/search")
    ProgressLines().on_log(args, state, None, {"eval_loss": 0.5, "eval_runtime": 3.0})
    assert capsys.readouterr().err == "search step 2 of 9: selection loss 0.5000\n"
