"""The search phase on transformers' Trainer: the upper level, added to the training loop."""

import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import Trainer

from peft_bidora.adapter.attach import use_closed_form
from peft_bidora.adapter.layer import norm_in_graph
from peft_bidora.adapter.outputs import keep_outputs, leaves_outputs_alone
from peft_bidora.adapter.packed import rounds_coarsely
from peft_bidora.adapter.parameters import Levels, require_gradient, split_levels
from peft_bidora.adapter.regularizer import OrthogonalityRegularizer
from peft_bidora.bilevel.gradients import alone, mean_over_ranks
from peft_bidora.bilevel.hypergradient import BilevelProblem
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state, preserved_random_state
from peft_bidora.bilevel.response import Response, adam_response
from peft_bidora.bilevel.step import upper_step
from peft_bidora.errors import CheckpointError, SplitError
from peft_bidora.training import ranks
from peft_bidora.training.arguments import XI_OF_ADAM, BiDoRAArguments, estimator_for
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.rank_loader import used_columns
from peft_bidora.training.requirements import refuse_reentrant_checkpoints, require_second_derivatives, sized
from peft_bidora.training.upper_batches import Batch, UpperBatches
from peft_bidora.training.upper_level import UpperLevel, estimator_of

# What a mixin's `super()` and `self` are: some Trainer, known when the class is combined with one.
_AnyTrainer: Any = Trainer if TYPE_CHECKING else object
UPPER_LEVEL_NAME = "upper_level.pt"
logger = logging.getLogger(__name__)


class BilevelMixin(_AnyTrainer):
    """Add the upper level to the training loop of any Trainer subclass: `class Mine(BilevelMixin, SomeTrainer)`.

    At every K-th step the gradients of both levels are taken at the same point: the magnitudes move along the
    hypergradient, then the direction along the gradient of the lower loss.

    Args:
        upper_dataset: the rows of the upper level; `train_dataset` holds those of the lower level.

    Raises:
        TypeError: an argument of Trainer's that would go round the two levels: `model_init`, `optimizers`; or a
            Trainer that does not know how to divide its rows over several processes.
        SplitError: there are no rows of the upper level, or they are those of the lower one.
    """

    def __init__(self, *args: Any, upper_dataset: Dataset[Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, BiDoRAArguments):
            raise TypeError(f"args: expected BiDoRAArguments, got {type(self.args).__name__}")
        if self.model_init is not None:
            raise TypeError("model_init: expected a model, which the levels are parts of. Pass model=model_init().")
        if self.optimizer is not None or self.lr_scheduler is not None:
            raise TypeError(
                "optimizers: each level makes its own in each phase. Name them by args: optim, learning_rate,"
                " upper_learning_rate, or optimizer_cls_and_kwargs for the direction."
            )
        if ranks.count() > 1 and not isinstance(self, ExactTrainer):
            raise TypeError(
                f"{type(self).__name__}: on {ranks.count()} processes expected a subclass of ExactTrainer, which"
                " divides the rows of a batch. Put it behind BilevelMixin, or train on one process."
            )
        if upper_dataset is None or len(sized("upper_dataset", upper_dataset)) == 0:
            raise SplitError(
                "upper_dataset is empty; the upper level needs rows of its own. Raise data.upper_fraction."
            )
        if upper_dataset is sized("train_dataset", self.train_dataset):
            raise SplitError(
                "upper_dataset is train_dataset; the upper level must read rows that the lower level never sees. Split"
                " them, 80 to 20, say."
            )
        if self.args.hypergradient == "exact":
            require_second_derivatives(self.model)
        use_closed_form(self.model)
        self.upper_dataset = upper_dataset
        self.levels: Levels = split_levels(self.model)
        self.phase = "search"
        self._bfloat16 = self.args.bf16 or rounds_coarsely(self.model)
        self._upper: UpperLevel | None = None
        self._upper_batches: UpperBatches
        self._regularizer: OrthogonalityRegularizer | None = None
        self._lower_losses: list[ReplayedLoss] = []
        self._outputs_may_be_kept: bool | None = None  # by the layers, for the gradient of their magnitudes
        self._magnitudes_moved = True  # since it was seen whether they are too small for that
        self._logged_at: tuple[int, float] | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as Trainer does; during the search the row norm is a part of the graph, as the hypergradient needs."""
        with norm_in_graph(self.model) if self.phase == "search" else nullcontext():
            return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the lower level's optimiser as Trainer would, of the direction alone."""
        require_gradient(list(self.levels.magnitude.values()), False)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make the schedules of both levels; in the search phase the upper level starts anew."""
        if self.phase == "search":
            refuse_reentrant_checkpoints(self.model)
            if num_training_steps < self.args.lower_steps:
                logger.warning(
                    "lower_steps=%d: the search has %d steps, so that no upper step is taken and the magnitudes stay as"
                    " they are. Lower it, or make the search longer.",
                    self.args.lower_steps,
                    num_training_steps,
                )
            self._upper = self._new_upper_level(num_training_steps)
            self._lower_losses, self._magnitudes_moved = [], True
            gamma = self.args.orthogonality
            self._regularizer = OrthogonalityRegularizer(self.model) if gamma > 0 else None
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Run one lower pass and, with the last micro-batch of every K-th step, the upper step."""
        if self.phase != "search":
            plain: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return plain
        magnitude = list(self.levels.magnitude.values())
        due = (self.state.global_step + 1) % self.args.lower_steps == 0
        if self._outputs_may_be_kept is None:
            self._outputs_may_be_kept = self._leaves_outputs_alone(model, inputs)
        if self._outputs_may_be_kept and self._magnitudes_moved:
            keep_outputs(self.model)
            self._magnitudes_moved = False
        # Only a one-sided difference reads ∂L_train/∂M of the training pass.
        reuses = estimator_for(self.args.hypergradient, bfloat16=self._bfloat16) == "one-sided"
        require_gradient(magnitude, due and reuses)
        if due:
            batch = dict(inputs)
            micro_batches = self.current_gradient_accumulation_steps
            loss = partial(self._loss_share, _inside(model), batch, num_items_in_batch, micro_batches)
            self._lower_losses.append(ReplayedLoss(loss, capture_random_state()))
        lower_loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            if self._regularizer is not None:
                self._regularizer.add_gradient(self.args.orthogonality, self.state.global_step)
            if due:
                self._upper_step(_inside(model), magnitude, reuses)
        return lower_loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the upper level's figures to those of a logging interval of the search."""
        if self.phase == "search" and self._upper is not None and "loss" in logs:
            now = (self.state.global_step, perf_counter())
            logs.update(self._upper.drain_logs())
            if self._logged_at is not None and now[0] > self._logged_at[0]:
                logs["seconds_per_step"] = (now[1] - self._logged_at[1]) / (now[0] - self._logged_at[0])
            self._logged_at = now
        super().log(logs, start_time)

    def _upper_step(self, model: nn.Module, magnitude: list[nn.Parameter], reused: bool) -> None:
        upper = self._upper
        assert upper is not None  # create_scheduler has run
        # A layer that the loss does not reach has no gradient.
        taken = [torch.zeros_like(each) if each.grad is None else each.grad for each in magnitude] if reused else None
        for parameter in magnitude:
            parameter.grad = None  # clipping is of the lower level's gradients alone
        require_gradient(magnitude, True)
        direction = list(self.levels.direction.values())
        try:
            problem = BilevelProblem(
                lower_losses=self._lower_losses,
                upper_losses=self._upper_losses(model, self._upper_batches.next_batch()),
                direction=direction,
                magnitude=magnitude,
                lower_magnitude_gradient=taken,
                response=self._response(direction) if self.args.xi == XI_OF_ADAM else None,
                reduction=mean_over_ranks if ranks.count() > 1 else alone,
            )
            gradient = upper_step(
                estimator_of(self.args, self._get_learning_rate(), bfloat16=self._bfloat16),
                problem,
                upper.optimizer,
                max_norm=self.args.max_grad_norm,
                step=self.state.global_step + 1,
            )
        finally:
            self._lower_losses, self._magnitudes_moved = [], True
            require_gradient(magnitude, False)
        if gradient.lower is not None:
            for parameter, added in zip(direction, gradient.lower, strict=True):
                parameter.grad = added if parameter.grad is None else parameter.grad.add_(added)
        upper.finish_step(gradient)
        if self.args.settled is not None and upper.has_settled(self.args.settled):
            self.control.should_training_stop = True

    def _leaves_outputs_alone(self, model: nn.Module, inputs: Batch) -> bool:
        model.train()
        with preserved_random_state():
            return leaves_outputs_alone(self.model, partial(self._loss_share, _inside(model), inputs, None, 1))

    def _response(self, direction: list[nn.Parameter]) -> Response:
        """Return the response of the coming lower step to its gradient."""
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in direction]
        return adam_response(self.optimizer, direction, gradients, max_norm=self.args.max_grad_norm)

    def _upper_losses(self, model: nn.Module, batches: list[Batch]) -> list[Any]:
        items = self._get_num_items_in_batch(batches, self.args.device)
        return [partial(self._loss_share, model, batch, items, len(batches)) for batch in batches]

    def _loss_share(self, model: nn.Module, batch: Batch, items: Tensor | int | None, micro_batches: int) -> Tensor:
        """The loss of a micro-batch, scaled as Trainer scales its own: those of a batch add up to its mean.

        On several processes they add up to this one's part, and the mean over the processes is that of the batch.
        """
        inputs = self._prepare_inputs(dict(batch))
        with self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(model, inputs, num_items_in_batch=items)
        scaled = self.loss_is_scaled_for_ga
        if scaled is None:
            scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        return loss if scaled else loss / micro_batches

    def _new_upper_level(self, search_steps: int) -> UpperLevel:
        args: BiDoRAArguments = self.args
        rows, collate = used_columns(self, self.upper_dataset, "upper")
        self._upper_batches = UpperBatches(
            rows,
            collate,
            args.upper_batch_size or args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            args.data_seed if args.data_seed is not None else args.seed,
            ranks.rank(),
            ranks.count(),
        )
        return UpperLevel(list(self.levels.magnitude.values()), self._upper_batches.order, args, search_steps)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.phase == "search" and self._upper is not None and self.args.should_save:
            torch.save(self._upper.state_dict(), Path(output_dir) / UPPER_LEVEL_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.phase == "search" and self._upper is not None and checkpoint is not None:
            path = Path(checkpoint) / UPPER_LEVEL_NAME
            if not path.is_file():
                raise CheckpointError(f"{path} is missing; expected the state of the upper level. Resume from another.")
            try:
                self._upper.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            except KeyError as error:
                raise CheckpointError(
                    f"{path} has no {error}: another version of this package wrote it. Resume with that, or start anew."
                ) from error


def _inside(model: nn.Module) -> nn.Module:
    """Return the model that DistributedDataParallel is around, whose passes wait for no other process."""
    inside: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inside
