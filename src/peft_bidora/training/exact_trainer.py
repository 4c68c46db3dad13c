"""Trainer, with what it leaves inexact mended: resuming and gradient accumulation."""

import math
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from peft_bidora.adapter.attach import use_closed_form
from peft_bidora.bilevel.randomness import preserved_random_state
from peft_bidora.errors import NonFiniteError
from peft_bidora.training.checkpoint import last_whole_checkpoint

# These losses ignore num_items_in_batch although their models accept it, so that Trainer would not divide them.
_MEAN_LOSSES = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForImageClassification")


class ExactTrainer(Trainer):
    """Trainer that resumes bit for bit at any cadence and divides every loss right under gradient accumulation.

    With `logging_nan_inf_filter=False` a training loss that is not finite ends the run at the next logging step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if self.compute_loss_func is None and getattr(model, "loss_type", None) in _MEAN_LOSSES:
            self.loss_is_scaled_for_ga = False

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does; True goes on from the last whole checkpoint, or begins where there is none."""
        if resume_from_checkpoint is True:
            last = last_whole_checkpoint(Path(self.args.output_dir))
            resume_from_checkpoint = None if last is None else str(last)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as Trainer does; the generators that training draws from are left as they were."""
        with preserved_random_state():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does.

        Raises:
            NonFiniteError: the logged training loss is infinite or not a number.
        """
        super().log(logs, start_time)
        if not math.isfinite(logs.get("loss", 0.0)):
            raise NonFiniteError(
                f"step {self.state.global_step} in {self.args.output_dir}: the training loss is {logs['loss']};"
                " expected a finite number. Lower the learning rate, set max_grad_norm, or train in float32. The"
                " checkpoints before it are kept."
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save under the names that the modules have.

        transformers saves a model under the names of the file that it came from, and Trainer loads a checkpoint by
        those of the modules: what an old file calls LayerNorm.gamma would be left as it is, unseen.
        """
        renamed = getattr(self.model, "_weight_conversions", None)
        if renamed is None or hasattr(self.model, "peft_config"):
            super()._save_checkpoint(model, trial)
            return
        self.model._weight_conversions = []
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.model._weight_conversions = renamed

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        trainable = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if hasattr(self.model, "peft_config"):
            use_closed_form(self.model)
        for name, parameter in self.model.named_parameters():  # loading an adapter makes all of it trainable
            parameter.requires_grad_(trainable[name])
