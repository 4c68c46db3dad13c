"""Trainer, with what it leaves inexact mended: resuming and gradient accumulation."""

from typing import Any

from torch import nn
from transformers import Trainer

from peft_bidora.adapter.attach import use_closed_form
from peft_bidora.bilevel.randomness import preserved_random_state

# These losses ignore num_items_in_batch although their models accept it, so that Trainer would not divide them.
_MEAN_LOSSES = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForImageClassification")


class ExactTrainer(Trainer):
    """Trainer that resumes bit for bit at any cadence and divides every loss right under gradient accumulation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if self.compute_loss_func is None and getattr(model, "loss_type", None) in _MEAN_LOSSES:
            self.loss_is_scaled_for_ga = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as Trainer does; the generators that training draws from are left as they were."""
        with preserved_random_state():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        trainable = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if hasattr(self.model, "peft_config"):
            use_closed_form(self.model)
        for name, parameter in self.model.named_parameters():  # loading an adapter makes all of it trainable
            parameter.requires_grad_(trainable[name])
