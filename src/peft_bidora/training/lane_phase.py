"""What a lane has in a phase of its training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.lane import Lane
from peft_bidora.training.row_order import RowOrder, lower_permutation, upper_permutation
from peft_bidora.training.upper_level import UpperLevel


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: its step, its metrics and the values that were scored."""

    step: int
    metrics: dict[str, float]
    values: dict[str, Tensor]


class LanePhase:
    """What a lane has in a phase: its optimisers, schedules, data orders and best values.

    Args:
        lane: the run.
        phase: "search" or "retrain".
        views: its trained parameters by name, of which those of the lower level are optimised here.
    """

    def __init__(self, lane: Lane, phase: str, views: Mapping[str, Tensor]) -> None:
        args = lane.arguments[phase]
        self.lane, self.phase, self.args, self.views = lane, phase, args, views
        bilevel = isinstance(args, BiDoRAArguments)
        magnitude = [name for name in lane.values if "lora_magnitude_vector" in name]
        self.lower = [name for name in lane.values if not (bilevel and name in magnitude)]
        self.magnitude = [views[name] for name in magnitude] if phase == "search" else []
        steps = lane.steps(phase)
        optimizer_class, options = ExactTrainer.get_optimizer_cls_and_kwargs(args)
        groups = [
            {
                "params": [views[name] for name in self.lower if (name in lane.decayed) == decays],
                "weight_decay": decay,
            }
            for decays, decay in ((True, args.weight_decay), (False, 0.0))
        ]
        self.optimizer = optimizer_class([group for group in groups if group["params"]], **options)
        self.scheduler = get_scheduler(
            args.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        accumulation, seed = args.gradient_accumulation_steps, args.seed + (bilevel and phase == "retrain")
        size = args.per_device_train_batch_size * accumulation
        # Trainer reads the rows in an order that the seed of the phase gives, if no other is named.
        permutation = lower_permutation(seed if args.data_seed is None else args.data_seed)
        self.order = RowOrder(len(lane.rows[phase]), size, permutation)
        self.upper: UpperLevel | None = None
        if phase == "search":
            upper_seed = args.seed if args.data_seed is None else args.data_seed
            upper_size = (args.upper_batch_size or args.per_device_train_batch_size) * accumulation
            upper_order = RowOrder(len(lane.rows["upper"]), upper_size, upper_permutation(upper_seed))
            self.upper = UpperLevel(self.magnitude, upper_order, args, steps)
        self.settled = False
        self.best: Best | None = None
        self.losses: list[Tensor] = []  # since they were logged
        self.told: dict[str, float] = {}  # of the last step

    @property
    def is_moving(self) -> bool:
        """Whether the lane is trained on: it neither diverged nor settled."""
        return self.lane.stopped is None and not self.settled

    def learning_rate(self) -> float:
        """Return the present one of the lower level."""
        return float(self.scheduler.get_last_lr()[0])

    def next_rows(self) -> list[Mapping[str, Any]]:
        """Return the next rows of the phase."""
        rows = self.lane.rows[self.phase]
        return [rows[index] for index in self.order.next_indices()]

    def next_upper_rows(self) -> list[Mapping[str, Any]]:
        """Return the next rows of the upper level."""
        assert self.upper is not None
        rows = self.lane.rows["upper"]
        return [rows[index] for index in self.upper.order.next_indices()]

    def drain_log(self, step: int) -> None:
        """Log the means since the last call."""
        entry: dict[str, Any] = {"phase": self.phase, "step": step, **self.told}
        if self.losses:
            entry["loss"] = torch.stack(self.losses).float().mean().item()
        if self.upper is not None:
            entry |= self.upper.drain_logs()
        self.losses = []
        self.lane.log.append(entry)

    def state_dict(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the state as plain tensors and containers, with the present values of the parameters."""
        return {
            "values": dict(values),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.order.state_dict(),
            "upper": None if self.upper is None else self.upper.state_dict(),
            "settled": self.settled,
            "best": None if self.best is None else vars(self.best),
            "losses": self.losses,
            "log": self.lane.log,
            "stopped": self.lane.stopped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the parameters are left to the caller."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.order.load_state_dict(state["order"])
        if self.upper is not None:
            self.upper.load_state_dict(state["upper"])
        self.settled, self.losses = state["settled"], list(state["losses"])
        self.best = None if state["best"] is None else Best(**state["best"])
        self.lane.log, self.lane.stopped = list(state["log"]), state["stopped"]
