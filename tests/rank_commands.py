"""Commands that ranks give in tests, as torchrun would start them."""

import contextlib
import io
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from peft_bidora.cli import main
from peft_bidora.recipe import run as run_module
from peft_bidora.training import ranks

Said = tuple[int, str, str]  # exit code, standard output, standard error
Fault = tuple[str, str, int]  # "killed" or "full disk", the phase and the step
SMALL = 3000  # bytes, less than the state of an optimiser


SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}


def give(
    _folder: Path, commands: Sequence[Sequence[str]], fault: Fault | None = None, *, sharded: bool = False
) -> list[Said]:
    """Give commands one after another; return what this rank said and its exit codes.

    Args:
        commands: their arguments.
        fault: what happens: the second rank is killed in a step, or the disk is full for the first after it.
        sharded: whether they are started as `accelerate launch --use_fsdp --fsdp_version 2` does.
    """
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "leave", ranks.wait)  # the next command needs the others
        for name, value in SHARDS.items() if sharded else ():
            patch.setenv(name, value)
        if fault is not None:
            make = run_module.make_trainer
            patch.setattr(run_module, "make_trainer", lambda *given: _with_callback(make(*given), Break(*fault)))
        try:
            return [_give(arguments) for arguments in commands]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


class Break(TrainerCallback):
    def __init__(self, fault: str, phase: str, step: int) -> None:
        self.fault, self.phase, self.step = fault, phase, step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name != self.phase or state.global_step + 1 != self.step:
            return
        if self.fault == "killed" and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)  # in the middle of a step: nothing has been applied
        if self.fault == "full disk" and args.process_index == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


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
