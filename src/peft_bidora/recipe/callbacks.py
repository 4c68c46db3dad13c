"""What a run adds to the training loop: a bar or lines of progress, a clock that outlives a kill, a last evaluation."""

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from peft_bidora.recipe.folder import seconds_before, write_json
from peft_bidora.training import ranks


class PhaseProgress(ProgressCallback):  # type: ignore[misc]  # transformers is untyped here
    """Trainer's progress bar with the phase in front, and no log lines between."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar of a phase."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(Path(args.output_dir).name)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss at the bar's end."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix({"loss": f"{logs['loss']:.3f}"})


class ProgressLines(TrainerCallback):  # type: ignore[misc]  # as above
    """Write a line on standard error for each evaluation, or for each logging interval where there is none.

    It stands for the bar where standard error is a file or a pipe.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write the step, the training loss and what was measured on the selection rows."""
        if ranks.rank() > 0:
            return
        logged = [entry for entry in state.log_history if "loss" in entry]
        measured = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if not (measured if args.eval_strategy != "no" else "loss" in logs):
            return
        speed = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
        figures = [f"loss {entry['loss']:.4f}" for entry in logged[-1:]]
        figures += [f"selection {name} {value:.4f}" for name, value in measured.items() if name not in speed]
        phase = Path(args.output_dir).name
        sys.stderr.write(f"{phase} step {state.global_step} of {state.max_steps}: {', '.join(figures)}\n")


class EvaluateLastStep(TrainerCallback):  # type: ignore[misc]  # as above
    """Let the last step be a candidate for the best checkpoint at any `eval_steps`."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for an evaluation at the end of a phase; Trainer itself saves there."""
        if (state.global_step >= state.max_steps or control.should_training_stop) and args.eval_strategy != "no":
            control.should_evaluate = True


class Stopwatch(TrainerCallback):  # type: ignore[misc]  # as above
    """Count the seconds of training that led to the result, over kills: those after the last checkpoint are redone.

    Args:
        path: a JSON file, rewritten with each checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = seconds_before(path)
        self._start = perf_counter()

    def seconds(self) -> float:
        """Return the seconds until now, of this process and of those it resumes."""
        return self._before + perf_counter() - self._start

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the time down."""
        if ranks.rank() == 0:
            write_json(self._path, {"seconds": self.seconds()})
