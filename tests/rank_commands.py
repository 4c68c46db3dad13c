"""Commands that ranks give in tests, as torchrun would start them."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import rank_works
from transformers import TrainerCallback

from peft_bidora.cli import main
from peft_bidora.recipe import run as run_module
from peft_bidora.training import ranks

Said = tuple[int, str, str]  # exit code, standard output, standard error


def give(_folder: Path, commands: Sequence[Sequence[str]], kill: rank_works.Place | None = None) -> list[Said]:
    """Give commands one after another; return what this rank said and its exit codes.

    Args:
        commands: their arguments.
        kill: the phase and step in which the second rank kills itself.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "leave", ranks.wait)  # the next command needs the others
        if kill is not None and os.environ["RANK"] == "1":
            make = run_module.make_trainer
            patch.setattr(run_module, "make_trainer", lambda prepared: _with_callback(make(prepared), Kill(*kill)))
        return [_give(arguments) for arguments in commands]


class Kill(TrainerCallback):
    """SIGKILL in the middle of a step: after its first pass, before its gradients are applied."""

    def __init__(self, phase: str, step: int) -> None:
        self.phase, self.step = phase, step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == self.phase and state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _with_callback(trainer: Any, callback: TrainerCallback) -> Any:
    trainer.add_callback(callback)
    return trainer


def _give(arguments: Sequence[str]) -> Said:
    output, errors = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        sys.argv = ["peft-bidora", *arguments]
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, output.getvalue(), errors.getvalue()
