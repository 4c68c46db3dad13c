"""BiDoRA on transformers' Trainer: the search phase, then the retrain phase."""

import copy
import json
import logging
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import ConcatDataset
from transformers import TrainerState, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import TrainOutput

from peft_bidora.adapter.parameters import require_gradient, restore, snapshot
from peft_bidora.errors import CheckpointError
from peft_bidora.training import ranks
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.bilevel_mixin import BilevelMixin
from peft_bidora.training.checkpoint import STATE, checkpoint_step, last_whole_checkpoint, read_state
from peft_bidora.training.exact_trainer import ExactTrainer

logger = logging.getLogger(__name__)

INITIAL_DIRECTION_NAME = "initial_direction.safetensors"
ENDED_NAME = "ended.json"  # the step at which the search ended, and its whole log


class BiDoRATrainer(BilevelMixin, ExactTrainer):
    """Fine-tune with BiDoRA where Trainer stood: `train`, `evaluate`, `predict`, `save_model` and callbacks.

    `train` runs the search phase in OUTPUT/search and the retrain phase in OUTPUT/retrain. After the search the
    magnitudes are fixed, and the direction is trained from its initial values on the rows of both levels.

    Args:
        upper_dataset: the rows of the upper level; `train_dataset` holds those of the lower level.

    Reference: Qin, Zhang, Xie, arXiv:2410.09758.
    """

    args: Any
    train_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._search_args: BiDoRAArguments = self.args
        self.log_history: list[dict[str, Any]] = []

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Run the search phase, then the retrain phase.

        Args:
            resume_from_checkpoint: True goes on from the last whole checkpoint of either phase, or from the start
                where there is none; a path names a checkpoint folder.
            **kwargs: as for `Trainer.train`.

        Returns:
            what the retrain phase returned.
        """
        lower_dataset, output = self.train_dataset, Path(self._search_args.output_dir)
        search, retrain = ranks.on_first(lambda: self._resume_points(resume_from_checkpoint, output))
        try:
            self.log_history = []
            if retrain is None:
                self._search(search, output / "search", kwargs)
            elif searched := last_whole_checkpoint(output / "search"):
                self._keep_logs("search", _with_whole_log(read_state(searched), output / "search"))
            self._enter("retrain", retrain_arguments(self._search_args, output / "retrain"))
            self.train_dataset = concatenated(lower_dataset, self.upper_dataset)
            result = super().train(resume_from_checkpoint=str(retrain) if retrain else None, **kwargs)
            self._keep_logs("retrain", self.state)
        finally:
            self.args, self.train_dataset = self._search_args, lower_dataset
        return result

    def _search(self, checkpoint: Path | None, folder: Path, kwargs: dict[str, Any]) -> None:
        """Leave the found magnitudes and the direction that the retrain phase starts from in the model."""
        args = copy.copy(self._search_args)
        args.output_dir, args.load_best_model_at_end = str(folder), False
        self._enter("search", args)
        initial_path, ended_path = folder / INITIAL_DIRECTION_NAME, folder / ENDED_NAME
        direction = self.levels.direction

        def begin() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            ended_path.unlink(missing_ok=True)
            save_file(snapshot(direction), initial_path)

        if checkpoint is None:
            ranks.on_first(begin)
        initial = _load_direction(initial_path)
        super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
        self._keep_logs("search", self.state)
        last = folder / f"checkpoint-{self.state.global_step}" / STATE
        if not ranks.on_first(last.is_file):  # it is written last
            self._save_checkpoint(self.model, None)
        ranks.on_first(lambda: _write_ended(ended_path, self.state))
        if self._search_args.retrain_from == "initial":
            restore(direction, initial)

    def _enter(self, phase: str, args: TrainingArguments) -> None:
        """Start a phase from a state of the generators that does not depend on how it was reached."""
        self.phase, self.args = phase, args
        self.optimizer = self.lr_scheduler = None
        self._train_batch_size = args.train_batch_size
        require_gradient(list(self.levels.magnitude.values()), False)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):  # it would draw both phases into one curve
                callback.logging_dir = os.getenv("TENSORBOARD_LOGGING_DIR") and str(
                    Path(os.environ["TENSORBOARD_LOGGING_DIR"]) / phase
                )
        set_seed(args.seed + (1 if phase == "retrain" else 0))

    def _is_last(self, checkpoint: Path) -> bool:
        """Return whether a phase ended at a checkpoint; a callback may have stopped the search before its last step."""
        return super()._is_last(checkpoint) or _read_ended(checkpoint.parent)["step"] == checkpoint_step(checkpoint)

    def _take_over(self, checkpoint: Path) -> TrainOutput:
        """Take over what was logged after the checkpoint too."""
        output = super()._take_over(checkpoint)
        self.state = _with_whole_log(self.state, checkpoint.parent)
        return output

    def _keep_logs(self, phase: str, state: TrainerState) -> None:
        self.log_history += [{"phase": phase, **entry} for entry in state.log_history]

    def _resume_points(self, resume: str | Path | bool | None, output: Path) -> tuple[Path | None, Path | None]:
        """Return the checkpoints to resume the search and the retrain phase from."""
        if not resume:
            old = [path for phase in ("search", "retrain") for path in (output / phase).glob("checkpoint-*")]
            if old:
                raise CheckpointError(
                    f"{output} holds checkpoints of an earlier run ({old[0]}), which a later resume would go on from."
                    " Name another output_dir, remove them, or resume."
                )
            return None, None
        if isinstance(resume, str | Path):
            if Path(resume).parent.name == "retrain":
                return None, Path(resume)
            if later := sorted((output / "retrain").glob("checkpoint-*")):
                raise CheckpointError(
                    f"{later[0]} is of a retrain phase that came after another search than the one resumed from"
                    f" {resume}; a later resume would go on from it. Remove {output / 'retrain'}, or name another"
                    " output_dir."
                )
            return Path(resume), None
        retrain = last_whole_checkpoint(output / "retrain")
        search = None if retrain else last_whole_checkpoint(output / "search")
        if search is None and retrain is None:
            logger.warning("There is no whole checkpoint in %s: the run starts from the beginning.", output)
        return search, retrain


def _write_ended(path: Path, state: TrainerState) -> None:
    """Say that the search ended; a kill leaves all of the file or none."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"step": state.global_step, "log_history": state.log_history}), encoding="utf-8")
    os.replace(partial, path)


def _read_ended(folder: Path) -> dict[str, Any]:
    """Return the step at which the search ended and its log; the step is None where it has not."""
    path = folder / ENDED_NAME
    ended: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"step": None}
    return ended


def _with_whole_log(state: TrainerState, folder: Path) -> TrainerState:
    """Return the state of the last checkpoint with what was logged after it: an evaluation at an epoch's end, say."""
    ended = _read_ended(folder)
    if ended["step"] == state.global_step:
        state.log_history = ended.get("log_history", state.log_history)
    return state


def _load_direction(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected the direction that the search started from, but it cannot be read ({error}). Start the"
            " run anew."
        ) from None


def retrain_arguments(args: BiDoRAArguments, folder: Path) -> BiDoRAArguments:
    """Return the arguments of the retrain phase: every `retrain_*` that is set, in place of the plain one."""
    retrain = copy.copy(args)
    retrain.output_dir = str(folder)
    if args.retrain_num_train_epochs is not None and args.retrain_max_steps is None:
        retrain.max_steps = -1
    for name in vars(args):
        plain = name.removeprefix("retrain_")
        value = getattr(args, name)
        if plain != name and value is not None and hasattr(args, plain):
            setattr(retrain, plain, value)
    return retrain


def concatenated(lower: Any, upper: Any) -> Any:
    """Return the rows of both levels, those that the retrain phase reads."""
    if hasattr(lower, "remove_columns") and hasattr(upper, "remove_columns"):
        from datasets import concatenate_datasets

        return concatenate_datasets([lower, upper])
    return ConcatDataset([lower, upper])
