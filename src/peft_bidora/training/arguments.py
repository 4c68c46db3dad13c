"""The options of a bi-level training run."""

import math
from dataclasses import dataclass, field

from transformers import SchedulerType, TrainingArguments

from peft_bidora.errors import RecipeError

HYPERGRADIENTS = ("auto", "finite-difference", "one-sided", "exact", "first-order", "pbgd-free")
XI_OF_LOWER, XI_OF_ADAM = "lower-learning-rate", "adam"
_SCHEDULES = tuple(each.value for each in SchedulerType)
_UPPER_SCHEDULES = tuple(name for name in _SCHEDULES if name != "reduce_lr_on_plateau")  # which needs an evaluation
# What is read only once the search is over: what is expected, from which value up.
_RETRAIN_LEAST = {
    "per_device_train_batch_size": ("a whole number from 1 up", 1),
    "gradient_accumulation_steps": ("a whole number from 1 up", 1),
    "learning_rate": ("a finite number from 0 up", 0),
    "num_train_epochs": ("a finite number from 0 up", 0),
    "max_grad_norm": ("a finite number from 0 up", 0),
    "weight_decay": ("a finite number from 0 up", 0),
    "warmup_steps": ("a finite number from 0 up", 0),
}


@dataclass
class BiDoRAArguments(TrainingArguments):
    """TrainingArguments whose own fields govern the lower level of the search phase, and these the rest.

    Args:
        logging_nan_inf_filter: Trainer's, but False: a loss that is not finite ends the run instead of hiding.
        restore_callback_states_from_checkpoint: Trainer's, but True: a patience of early stopping is resumed too.
        ddp_find_unused_parameters: Trainer's, but False: an adapter that the loss does not reach is an error, and none
            is looked for at every step.
        upper_learning_rate: of the magnitudes; 4 to 10 times `learning_rate` works, 0 leaves them as they are.
        upper_weight_decay: of the magnitudes; decay pulls the adapted weight towards zero.
        upper_lr_scheduler_type: a transformers scheduler, over the upper steps.
        upper_batch_size: rows of the upper split a pass; None for per_device_train_batch_size.
        lower_steps: K, optimiser steps of the lower level for each of the upper.
        hypergradient: "finite-difference" (central), "one-sided", "exact", "first-order" (the direct gradient),
            "pbgd-free" (the direct gradient, the direction following both losses; K = 1 as published), or "auto": the
            cheapest that is within 1 % of the exact one in the precision, see `estimator_for`.
        penalty: of "pbgd-free", γ: the direction descends along ∂L_train + ∂L_val / γ.
        xi: ξ, the multiple of the identity in place of the inverse Hessian; "lower-learning-rate" for the present one;
            or "adam" for the response of the lower level's Adam step, a diagonal (SAMA, arXiv:2310.05674).
        finite_difference_radius: ‖εv‖; None for the default of the precision.
        settled: ends the search once the magnitudes go less straight than this over ten upper steps, see
            `bilevel.settling`; None for the whole search.
        orthogonality: γ, the weight of the direction's orthogonality in the lower loss of the search.
        retrain_from: "initial" resets the direction after the search, "search" continues from it.
        retrain_max_steps: optimiser steps of the retrain phase; None for max_steps.
        retrain_num_train_epochs: passes instead of steps; None for num_train_epochs.
        retrain_learning_rate: None for learning_rate; so for the others below.
    """

    logging_nan_inf_filter: bool = False
    restore_callback_states_from_checkpoint: bool = True
    ddp_find_unused_parameters: bool | None = False
    upper_learning_rate: float = 2e-2
    upper_weight_decay: float = 0.0
    upper_lr_scheduler_type: str = "constant"
    upper_batch_size: int | None = None
    lower_steps: int = 4
    hypergradient: str = "auto"
    penalty: float = 10.0
    xi: float | str = field(default=1.0)
    finite_difference_radius: float | None = None
    settled: float | None = None
    orthogonality: float = 1e-5
    retrain_from: str = "search"
    retrain_max_steps: int | None = None
    retrain_num_train_epochs: float | None = None
    retrain_learning_rate: float | None = None
    retrain_per_device_train_batch_size: int | None = None
    retrain_gradient_accumulation_steps: int | None = None
    retrain_max_grad_norm: float | None = None
    retrain_weight_decay: float | None = None
    retrain_lr_scheduler_type: str | None = None
    retrain_warmup_steps: float | None = None

    def __post_init__(self) -> None:
        """Check every option of ours at once.

        Raises:
            RecipeError: an option is out of range, or the engine is one that the search does not support.
        """
        super().__post_init__()
        faults = [
            f"{name}={getattr(self, name)!r}: expected {expected}. Correct it."
            for name, expected, valid in (
                ("upper_learning_rate", "a finite number from 0 up", 0 <= self.upper_learning_rate < math.inf),
                (
                    "upper_batch_size",
                    "a whole number from 1 up, or None",
                    self.upper_batch_size is None or _is_count(self.upper_batch_size),
                ),
                ("upper_weight_decay", "a finite number from 0 up", 0 <= self.upper_weight_decay < math.inf),
                ("lower_steps", "a whole number from 1 up", _is_count(self.lower_steps)),
                ("hypergradient", f"one of {', '.join(HYPERGRADIENTS)}", self.hypergradient in HYPERGRADIENTS),
                ("retrain_from", "initial or search", self.retrain_from in ("initial", "search")),
                ("orthogonality", "a finite number from 0 up", 0 <= self.orthogonality < math.inf),
                ("penalty", "a finite number above 0", 0 < self.penalty < math.inf),
                (
                    "finite_difference_radius",
                    "a finite number above 0, or None",
                    self.finite_difference_radius is None or 0 < self.finite_difference_radius < math.inf,
                ),
                (
                    "settled",
                    "a number above 0 and up to 1, or None",
                    self.settled is None or 0 < self.settled <= 1,
                ),
                (
                    "xi",
                    f"a finite number, {XI_OF_LOWER} or {XI_OF_ADAM}",
                    self.xi in (XI_OF_LOWER, XI_OF_ADAM) or _is_finite(self.xi),
                ),
                (
                    "optim",
                    "adamw_torch or adamw_torch_fused, whose response xi=adam is",
                    self.xi != XI_OF_ADAM or self.optim in ("adamw_torch", "adamw_torch_fused"),
                ),
                (
                    "upper_lr_scheduler_type",
                    f"one of {', '.join(_UPPER_SCHEDULES)}",
                    self.upper_lr_scheduler_type in _UPPER_SCHEDULES,
                ),
                (
                    "retrain_lr_scheduler_type",
                    f"one of {', '.join(_SCHEDULES)}, or None",
                    self.retrain_lr_scheduler_type in (None, *_SCHEDULES),
                ),
                (
                    "retrain_max_steps",
                    "a whole number from 1 up, -1 to count epochs, or None",
                    self.retrain_max_steps in (None, -1) or _is_count(self.retrain_max_steps),
                ),
                *(
                    (f"retrain_{name}", f"{expected}, or None", _is_least(getattr(self, f"retrain_{name}"), least))
                    for name, (expected, least) in _RETRAIN_LEAST.items()
                ),
            )
            if not valid
        ]
        faults += [
            f"{name} is not supported by the bi-level search; {instead}"
            for name, instead, wanted in (
                ("fp16", "two optimisers break its loss scaling: use bf16 or float32.", self.fp16),
                ("deepspeed", "it steps inside backward(): start it with torchrun, without it.", bool(self.deepspeed)),
                (
                    "fsdp",
                    "it shards what is trained too: leave it out, and call peft_bidora.shard_base(model).",
                    bool(self.fsdp),
                ),
            )
            if wanted
        ]
        if self.hypergradient == "exact" and self.torch_compile and self.torch_compile_backend != "eager":
            faults.append(
                "hypergradient=exact differentiates twice, which a graph that torch.compile made cannot be. Set"
                ' torch_compile=False, torch_compile_backend="eager", or use finite-difference.'
            )
        if self.world_size > 1:
            faults += [
                f"{name} is not supported on {self.world_size} processes: {instead}"
                for name, instead, wanted in (
                    ("torch_compile", "set it to False, or train on one process.", self.torch_compile),
                    (
                        "auto_find_batch_size",
                        "one that runs out of memory would leave the others waiting. Set per_device_train_batch_size.",
                        self.auto_find_batch_size,
                    ),
                )
                if wanted
            ]
        if self.n_gpu > 1:
            faults.append(
                f"expected one device a process, got {self.n_gpu}, which means DataParallel. Start it with torchrun"
                f" --nproc_per_node {self.n_gpu}, or set CUDA_VISIBLE_DEVICES to one."
            )
        if faults:
            raise RecipeError(*faults)


def estimator_for(hypergradient: str, *, bfloat16: bool) -> str:
    """Return the estimator that "auto" stands for, or the one that is named.

    Measured against the exact product (benchmarks/fidelity.py): in bfloat16 the one-sided difference stays below a
    cosine of 0.99, the central one is above 0.998; in float32 both have 1.0000.
    """
    if hypergradient != "auto":
        return hypergradient
    return "finite-difference" if bfloat16 else "one-sided"


def _is_finite(value: float | str) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_least(value: float | None, least: int) -> bool:
    return value is None or least <= value < math.inf
