"""Trainer, with what it leaves inexact mended: resuming, gradient accumulation, and the parts of several processes."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput

from peft_bidora import launched
from peft_bidora.adapter.attach import use_closed_form
from peft_bidora.adapter.layer import forget_constants
from peft_bidora.adapter.shards import is_sharded
from peft_bidora.bilevel.randomness import preserved_random_state
from peft_bidora.errors import NonFiniteError, RecipeError
from peft_bidora.training import ranks
from peft_bidora.training.checkpoint import last_whole_checkpoint, read_state
from peft_bidora.training.rank_loader import evaluation_loader, training_loader
from peft_bidora.training.sharding import reduce_gradients, refuse_fsdp, settle

# These losses ignore num_items_in_batch although their models accept it, so that Trainer would not divide them.
_MEANS_OF_LABELS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
_MEAN_LOSSES = (*_MEANS_OF_LABELS, "ForQuestionAnswering")


class ExactTrainer(Trainer):
    """Trainer that resumes bit for bit at any cadence and divides every loss right under gradient accumulation.

    The loss is the mean over labels, whether of tokens or of rows: of the whole accumulated batch of all processes in
    training, of all rows in an evaluation, where Trainer would take the mean of the batches' means.

    On several processes each reads its part of the batches that one would read, no row twice, and draws dropout masks
    of its own; the adapter is the one that one process with the whole batch trains, but for rounding and these masks.

    Trained parameters that are not finite end a run before they are saved. With `logging_nan_inf_filter=False` a
    training loss that is not finite ends it at the next logging step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        refuse_fsdp(launched.wants_fsdp())
        super().__init__(*args, **kwargs)
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        smoothed = self.label_smoother is not None  # which divides by num_items_in_batch itself
        if self.compute_loss_func is None and not smoothed and getattr(model, "loss_type", None) in _MEAN_LOSSES:
            self.loss_is_scaled_for_ga = False
        generates = hasattr(model, "can_generate") and model.can_generate()
        own = self.compute_loss_func is None and self.label_smoother is None and self.args.n_gpu <= 1
        self.is_token_mean = generates and own
        self._is_label_mean = own and (generates or getattr(model, "loss_type", None) in _MEANS_OF_LABELS)
        if self._is_label_mean:
            # Some of these models take num_items_in_batch and ignore it (BART, T5): their loss is weighed here instead.
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        if ranks.count() > 1 and not self.args.average_tokens_across_devices:
            raise RecipeError(
                f"average_tokens_across_devices=False: expected True on {ranks.count()} processes, whose parts of a"
                " batch are weighed by their labels. Leave it out."
            )
        self._evaluated: list[Tensor] | None = None  # of each batch the sum of the loss and the tokens
        settle(self)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as Trainer does; one that is a mean over labels becomes that mean · labels / all labels.

        All labels are those of the accumulated batch of every process. On N processes a loss is N times as large, since
        their gradients are averaged. In an evaluation the labels are counted, to take the mean over all rows.
        """
        counted = isinstance(inputs.get("labels"), Tensor)
        if not counted or (num_items_in_batch is None and self._evaluated is None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        items, count = self._label_items(inputs), ranks.count()
        passed = None if self._is_label_mean else num_items_in_batch
        loss, outputs = super().compute_loss(model, inputs, True, passed)
        loss = torch.where(items > 0, loss, 0.0)  # of no labels the mean is 0/0, and a blank row stands for none
        if self._is_label_mean and num_items_in_batch is not None:
            loss = loss * (items.to(_precise(loss)) * count / num_items_in_batch)
        if self._evaluated is not None:
            total = loss.detach() * (items if num_items_in_batch is None else num_items_in_batch / count)
            self._evaluated.append(torch.stack([total, items.to(total)]))
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run one pass as Trainer does; with the last of a step the ranks of a sharded model reduce its gradients."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if is_sharded(self.model) and self.accelerator.sync_gradients:
            reduce_gradients(self.optimizer)
        return loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return Trainer's loader; on several processes, that of this rank's part of each batch."""
        if ranks.count() == 1:
            loader: DataLoader[Any] = super().get_train_dataloader()
            return loader
        return training_loader(self)

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        """Return Trainer's loader; on several processes, that of this rank's part of the rows."""
        if ranks.count() == 1:
            loader: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
            return loader
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return evaluation_loader(self, self.eval_dataset[rows] if isinstance(rows, str) else rows)

    def get_test_dataloader(self, test_dataset: Dataset[Any]) -> DataLoader[Any]:
        """Return Trainer's loader; on several processes, that of this rank's part of the rows."""
        return (
            super().get_test_dataloader(test_dataset) if ranks.count() == 1 else evaluation_loader(self, test_dataset)
        )

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make Trainer's schedule; each rank draws by a seed of its own from now on, since its rows are known."""
        ranks.seed_by_rank(ranks.on_first(torch.random.initial_seed))
        return super().create_scheduler(num_training_steps, optimizer)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as Trainer does; a loss is the mean over all items, not over the means of batches."""
        self._evaluated = []
        forget_constants(self.model)  # averaged weights, say, are written past the counters that the layers trust
        try:
            output: EvalLoopOutput = super().evaluation_loop(*args, **kwargs)
            if self._evaluated and output.metrics is not None:
                loss, tokens = self.accelerator.reduce(torch.stack(self._evaluated).sum(0), "sum").tolist()
                output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = (
                    loss / tokens if tokens else math.nan
                )
        finally:
            self._evaluated = None
        return output

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does; True goes on from the last whole checkpoint, or begins where there is none.

        From the checkpoint of the last step there is nothing to train: its model is taken over, or the best one.

        Raises:
            NonFiniteError: a trained parameter is infinite or not a number.
        """
        if resume_from_checkpoint is True:
            last = ranks.on_first(lambda: last_whole_checkpoint(Path(self.args.output_dir)))
            resume_from_checkpoint = None if last is None else str(last)
        if resume_from_checkpoint and self._is_last(Path(resume_from_checkpoint)):
            return self._take_over(Path(resume_from_checkpoint))
        output = super().train(resume_from_checkpoint=str(resume_from_checkpoint or "") or None, **kwargs)
        self._require_finite_parameters()
        return output

    def _is_last(self, checkpoint: Path) -> bool:
        """Return whether a phase ended at a checkpoint: by its last step, or by a callback or a search that settled."""
        state = read_state(checkpoint)
        control = (state.stateful_callbacks or {}).get("TrainerControl", {}).get("args", {})
        return int(state.global_step) >= int(state.max_steps) or bool(control.get("should_training_stop"))

    def _take_over(self, checkpoint: Path) -> TrainOutput:
        """Leave what the phase that ended at a checkpoint left in the model."""
        self.state = read_state(checkpoint)
        self._load_from_checkpoint(str(checkpoint))
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            self.state.best_model_checkpoint = str(checkpoint.parent / Path(best).name)  # the run may have moved
            self._load_best_model()
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return TrainOutput(self.state.global_step, losses[-1] if losses else math.nan, {})

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as Trainer does; the generators that training draws from are left as they were."""
        with preserved_random_state():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as Trainer does; a callback may, and the generators that training draws from stay as they were."""
        with preserved_random_state():
            output: PredictionOutput = super().predict(*args, **kwargs)
        return output

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

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Choose as Trainer does, among the evaluations whose model is saved; of two that are level the lower loss."""
        at_end = self.state.global_step >= self.state.max_steps or self.control.should_training_stop
        if self.args.save_strategy == "steps" and not (at_end or self.state.global_step % self.state.save_steps == 0):
            return False
        before = self.state.best_metric
        if super()._determine_best_metric(metrics, trial):
            return True
        value = metrics.get(f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}")
        loss_of = {entry["step"]: entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry}
        best = loss_of.get(self.state.best_global_step, -math.inf)
        if value is None or value != before or not metrics.get("eval_loss", math.inf) < best:
            return False
        self.state.best_global_step = self.state.global_step
        return True

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save under the names that the modules have.

        transformers saves a model under the names of the file that it came from, and Trainer loads a checkpoint by
        those of the modules: what an old file calls LayerNorm.gamma would be left as it is, unseen.
        """
        self._require_finite_parameters()
        renamed = getattr(self.model, "_weight_conversions", None)
        if renamed is None or hasattr(self.model, "peft_config"):
            super()._save_checkpoint(model, trial)
            return
        self.model._weight_conversions = []
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.model._weight_conversions = renamed

    def _require_finite_parameters(self) -> None:
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        finite = torch.stack([value.detach().isfinite().all() for value in trained.values()]).tolist()
        if not all(finite):
            name = next(name for name, is_finite in zip(trained, finite, strict=True) if not is_finite)
            raise NonFiniteError(
                f"step {self.state.global_step} in {self.args.output_dir}: {name} holds values that are not finite."
                " Lower the learning rate, set max_grad_norm, or train in float32. The checkpoints before it are kept."
            )

    def _save_rng_state(self, output_dir: str) -> None:
        """Save as Trainer does; no rank goes on before all have, so that the state of training is written after it."""
        super()._save_rng_state(output_dir)
        ranks.wait()

    def _label_items(self, inputs: dict[str, Any]) -> Tensor:
        """Count the labels as Trainer counts num_items_in_batch."""
        labels: Tensor = inputs["labels"]
        shifted = getattr(self, "_loss_shifts_labels", False)  # of newer releases
        return (labels[..., 1:] if shifted else labels).ne(-100).sum()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        trainable = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if hasattr(self.model, "peft_config"):
            use_closed_form(self.model)
        for name, parameter in self.model.named_parameters():  # loading an adapter makes all of it trainable
            parameter.requires_grad_(trainable[name])


def _precise(loss: Tensor) -> torch.dtype:
    """Return the type in which counts are divided: bfloat16 has no more than 256 whole numbers in a row."""
    return torch.promote_types(loss.dtype, torch.float32)
