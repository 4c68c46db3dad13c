"""The state of the upper level that outlives a step: optimiser, schedule, data order, counters."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from peft_bidora.bilevel.hypergradient import (
    Estimator,
    Scalar,
    UpperGradient,
    central_difference_hypergradient,
    default_radius,
    direct_gradient,
    exact_hypergradient,
    one_sided_difference_hypergradient,
    value_function_free_gradient,
)
from peft_bidora.bilevel.settling import Straightness
from peft_bidora.training.arguments import XI_OF_ADAM, XI_OF_LOWER, BiDoRAArguments, estimator_for
from peft_bidora.training.row_order import RowOrder

WINDOW = 10  # upper steps over which it is seen whether the magnitudes have settled


class UpperLevel:
    """Optimiser, schedule and data order of the magnitudes, and the sums that are logged.

    Args:
        magnitude: the parameters of the upper level.
        order: of the rows of the upper split.
        args: the options of the run.
        search_steps: lower steps of the whole search phase.
    """

    def __init__(self, magnitude: Sequence[Tensor], order: RowOrder, args: BiDoRAArguments, search_steps: int) -> None:
        self.order = order
        self.steps = 0
        self.optimizer = torch.optim.AdamW(
            magnitude,
            lr=args.upper_learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.upper_weight_decay,
            fused=True,
        )
        upper_steps = max(1, search_steps // args.lower_steps)
        self.scheduler = get_scheduler(
            args.upper_lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=args.get_warmup_steps(search_steps) // args.lower_steps,
            num_training_steps=upper_steps,
        )
        self._straightness = Straightness(magnitude, WINDOW)
        self._straight: float | None = None  # of the last window
        self._sums: list[Tensor] = []
        self._count = 0

    def finish_step(self, gradient: UpperGradient) -> None:
        """Advance the schedule and remember what is logged; nothing leaves the device but a number a window."""
        self.scheduler.step()
        self.steps += 1
        straight = self._straightness.add_step()
        self._straight = self._straight if straight is None else straight
        values = [gradient.upper_loss, gradient.norm(), gradient.direct_implicit_cosine()]
        self._sums = [a + b for a, b in zip(self._sums, values, strict=True)] if self._sums else values
        self._count += 1

    def has_settled(self, threshold: float) -> bool:
        """Return whether the magnitudes went less straight than a threshold over the last window of upper steps."""
        return self._straight is not None and self._straight < threshold

    def drain_logs(self) -> dict[str, float]:
        """Return the means since the last call, and the learning rate."""
        logs = {"upper_learning_rate": float(self.scheduler.get_last_lr()[0])}
        if self._straight is not None:
            logs["magnitude_straightness"] = self._straight
        if self._count:
            loss, norm, cosine = (torch.stack(self._sums).float() / self._count).tolist()
            logs |= {"upper_loss": loss, "hypergradient_norm": norm, "direct_implicit_cosine": cosine}
        self._sums, self._count = [], 0
        return logs

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain tensors and containers."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "batches": self.order.state_dict(),
            "steps": self.steps,
            "straightness": self._straightness.state_dict(),
            "straight": self._straight,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.order.load_state_dict(state["batches"])
        self.steps = state["steps"]
        self._straight = state["straight"]
        self._straightness.load_state_dict(state["straightness"])


def estimator_of(args: BiDoRAArguments, lower_learning_rate: float, *, bfloat16: bool) -> Estimator:
    """Return the estimator that the options name, its own options bound.

    Args:
        args: the options of the run.
        lower_learning_rate: the present one, for ξ = "lower-learning-rate".
        bfloat16: whether the passes round to it.
    """
    return bound_estimator(
        estimator_for(args.hypergradient, bfloat16=bfloat16),
        estimator_options(args, lower_learning_rate, bfloat16=bfloat16),
    )


def estimator_options(args: BiDoRAArguments, lower_learning_rate: float, *, bfloat16: bool) -> dict[str, float]:
    """Return what estimators may be told: ξ, the radius and the penalty; args as in `estimator_of`."""
    named = {XI_OF_LOWER: lower_learning_rate, XI_OF_ADAM: 1.0}  # Adam's response has the rate in it
    return {
        "xi": named[args.xi] if isinstance(args.xi, str) else float(args.xi),
        "radius": args.finite_difference_radius or default_radius(torch.bfloat16 if bfloat16 else torch.float32),
        "penalty": args.penalty,
    }


def bound_estimator(name: str, options: Mapping[str, Scalar]) -> Estimator:
    """Return an estimator with its own options bound.

    Args:
        name: as `estimator_for` returns it.
        options: as `estimator_options` returns them; (lanes,) each where each lane has its own.
    """
    estimators: dict[str, tuple[Callable[..., UpperGradient], tuple[str, ...]]] = {
        "finite-difference": (central_difference_hypergradient, ("xi", "radius")),
        "one-sided": (one_sided_difference_hypergradient, ("xi", "radius")),
        "exact": (exact_hypergradient, ("xi",)),
        "first-order": (direct_gradient, ()),
        "pbgd-free": (value_function_free_gradient, ("penalty",)),
    }
    estimator, read = estimators[name]
    return partial(estimator, **{option: options[option] for option in read})
