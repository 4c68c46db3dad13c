"""One run among lanes: what its own Trainer says of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_concat

from peft_bidora.adapter.parameters import snapshot
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.trainer import BiDoRATrainer, concatenated, retrain_arguments

Rows = Sequence[Mapping[str, Any]]
IGNORED = -100  # the label that no loss counts


@dataclass
class Lane:
    """A run, made of the Trainer that would train it alone; it holds no model.

    Args:
        name: of the run.
        arguments: of each phase, in their order.
        rows: of each phase, encoded; "upper" and "selection" beside them.
        values: every trained parameter by its name, on the CPU.
        scaling: s = alpha / rank.
        decayed: names of the parameters that a weight decay is for.
        loss: logits, labels, items -> the share of some rows in the loss of a batch, as its Trainer computes it.
        shifted: whether a label is predicted by the position before it.
        score: predictions and label ids of the selection rows -> metrics; None where the loss alone is measured.
        log: what was logged.
        stopped: why it was taken out of the training; None while it is in.
        kept: the step whose values it was left with, of how many.
    """

    name: str
    arguments: dict[str, Any]
    rows: dict[str, Rows]
    values: dict[str, Tensor]
    scaling: float
    decayed: frozenset[str]
    loss: Callable[[Tensor, Tensor, float], Tensor]
    shifted: bool
    score: Callable[[EvalPrediction], dict[str, float]] | None
    log: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    kept: dict[str, int] | None = None

    @classmethod
    def of(cls, name: str, trainer: ExactTrainer) -> "Lane":
        """Return the run of a Trainer that has not begun; what it holds is copied, the model among it can go.

        Raises:
            ValueError: it trains a model in full, of which there is nothing that lanes could share, or by a loss that
                is not told from the logits.
        """
        model, args = trainer.model, trainer.args
        if not isinstance(model, PeftModel):
            raise ValueError("expected a Trainer of a PEFT model, got one that trains the base model")
        if trainer.compute_loss_func is None and not trainer.is_token_mean:
            raise ValueError("expected a Trainer with compute_loss_func, or of a model that generates text")
        rows = {"retrain": trainer.train_dataset}
        arguments = {"retrain": args}
        if isinstance(trainer, BiDoRATrainer):
            upper = trainer.upper_dataset
            rows = {
                "search": trainer.train_dataset,
                "retrain": concatenated(trainer.train_dataset, upper),
                "upper": upper,
            }
            arguments = {"search": args, "retrain": retrain_arguments(args, Path(args.output_dir) / "retrain")}
        if trainer.eval_dataset is not None:
            rows["selection"] = trainer.eval_dataset
        (config,) = model.peft_config.values()
        shifted = trainer.compute_loss_func is None and not getattr(model.config, "is_encoder_decoder", False)
        return cls(
            name=name,
            arguments=arguments,
            rows={part: _read_columns(trainer, each, part) for part, each in rows.items()},
            values=snapshot({each: p for each, p in model.named_parameters() if _is_trained(each, p)}),
            scaling=config.lora_alpha / config.r,
            decayed=frozenset(trainer.get_decay_parameter_names(model)),
            loss=_loss_of(trainer, shifted),
            shifted=shifted,
            score=trainer.compute_metrics,
        )

    def steps(self, phase: str) -> int:
        """Return the optimiser steps of a phase, as Trainer counts them."""
        args = self.arguments[phase]
        if args.max_steps > 0:
            return int(args.max_steps)
        batches = math.ceil(len(self.rows[phase]) / args.per_device_train_batch_size)
        of_an_epoch: int = max(1, math.ceil(batches / args.gradient_accumulation_steps))
        return math.ceil(float(args.num_train_epochs) * of_an_epoch)

    def stop(self, where: str, what: str) -> None:
        """Take the lane out of the training."""
        self.stopped = self.stopped or (
            f"{where}: {what}. Lower the learning rate, set max_grad_norm, or train in float32."
        )

    def is_better(self, metrics: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
        """Return whether metrics of the selection rows beat the best so far; of two that are level, by their loss."""
        if best is None:
            return True
        new, old = self.chosen(metrics), self.chosen(best)
        if new == old:
            return metrics["loss"] < best["loss"]
        return new > old if self.arguments["retrain"].greater_is_better else new < old

    def chosen(self, metrics: Mapping[str, float]) -> float:
        """Return the metric that the best checkpoint is chosen by."""
        return metrics[self.arguments["retrain"].metric_for_best_model.removeprefix("eval_")]

    def items(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """Return what the loss of a batch of rows is a mean over: the labels that count, as Trainer counts them."""
        labels = [np.asarray(row["labels"]) for row in rows]
        return float(max(1, sum(int(((each[1:] if self.shifted else each) != IGNORED).sum()) for each in labels)))

    def measured(self, logits: Tensor, labels: Tensor, rows: Sequence[Mapping[str, Any]]) -> "Measured":
        """Return what `metrics` needs of a batch of rows."""
        items = self.items(rows)
        loss = self.loss(logits, labels, 1.0).item()
        if self.score is None:
            return Measured(loss, items)
        return Measured(loss, items, logits.float().cpu().numpy(), labels.cpu().numpy())

    def metrics(self, batches: Sequence["Measured"], order: Sequence[int]) -> dict[str, float]:
        """Return the metrics of the selection rows, and their loss.

        Args:
            batches: one after the other.
            order: the indices of their rows, to put them back.
        """
        metrics = {"loss": sum(each.loss for each in batches) / sum(each.items for each in batches)}
        if self.score is None:
            return metrics
        back = np.argsort(order)
        predictions = reduce(nested_concat, [each.logits for each in batches])[back]
        labels = reduce(nested_concat, [each.labels for each in batches])[back]
        scores = self.score(EvalPrediction(predictions, labels))
        return metrics | {name: float(value) for name, value in scores.items()}


class Measured(NamedTuple):
    """Of a batch of selection rows: the sum of its loss, over how many items, logits and label ids."""

    loss: float
    items: float
    logits: Any = None
    labels: Any = None


def _read_columns(trainer: ExactTrainer, rows: Any, part: str) -> Rows:
    """Return rows without the columns that the model does not read, where they have columns."""
    found: Rows = trainer._remove_unused_columns(rows, description=part) if hasattr(rows, "remove_columns") else rows
    return found


def _is_trained(name: str, parameter: Tensor) -> bool:
    return parameter.requires_grad or "lora_magnitude_vector" in name


def _loss_of(trainer: ExactTrainer, shifted: bool) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return how a Trainer computes the loss from logits, labels and the items that it is a mean over."""
    compute = trainer.compute_loss_func
    if compute is not None:
        return lambda logits, labels, items: compute({"logits": logits}, labels, num_items_in_batch=items)
    return partial(_token_mean, shifted=shifted)


def _token_mean(logits: Tensor, labels: Tensor, items: float, *, shifted: bool) -> Tensor:
    """Return the share of label tokens in a mean, as transformers' models that generate text compute it.

    Args:
        logits: (rows, tokens, vocabulary).
        labels: (rows, tokens), -100 where none counts.
        items: tokens that the mean is over.
        shifted: whether a token is predicted by the position before it.
    """
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / items
