"""What ranks do in tests; importing it imports all that they need."""

import random
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from polynomial import Polynomial, flat, replayed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter, head_modules
from peft_bidora.bilevel.gradients import loss_and_gradient, mean_over_ranks
from peft_bidora.bilevel.hypergradient import (
    BilevelProblem,
    Estimator,
    UpperGradient,
    central_difference_hypergradient,
    direct_gradient,
    exact_hypergradient,
    one_sided_difference_hypergradient,
    value_function_free_gradient,
)
from peft_bidora.errors import DataError
from peft_bidora.tasks.completions import pad_right
from peft_bidora.tasks.multi_label import MultiLabelClassification
from peft_bidora.tasks.regression import Regression
from peft_bidora.tasks.sequence_classification import SequenceClassification
from peft_bidora.tasks.token_classification import TokenClassification
from peft_bidora.training import bilevel_mixin, ranks
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.sharding import shard_base
from peft_bidora.training.trainer import BiDoRATrainer
from peft_bidora.training.upper_batches import UpperBatches

OPTIONS: dict[str, Any] = {
    "max_steps": 20,
    "retrain_max_steps": 8,
    "learning_rate": 1e-2,
    "upper_learning_rate": 3e-2,
    "lower_steps": 2,
    "logging_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "per_device_eval_batch_size": 2,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}
# Of 17 rows the last of each 8 has none for one of two ranks; of 13 it has 2 and 3.
COUNTS = {"train_dataset": 17, "upper_dataset": 13, "eval_dataset": 7}


NAMES = ("a", "b", "c")
WEIGHTS = (0.5, 1.0, 3.0)
# The losses, by what they are a mean over; of the first and the last two the model has its own.
LOSSES: dict[str, Any] = {
    "rows": None,
    "weighted rows": SequenceClassification(NAMES, WEIGHTS).loss,
    "numbers": Regression(0.0, 1.0).loss,
    "labels": MultiLabelClassification(NAMES, WEIGHTS).loss,
    "words": TokenClassification(NAMES, "plain", WEIGHTS).loss,
    "tokens": None,
    "shifted tokens": None,
}


def adapted(kind: str = "rows", dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Any:
    """A tiny model with an adapter whose B is not zero, so that every gradient is alive."""
    torch.manual_seed(0)
    ids = {"vocab_size": 40, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": 2}
    if kind == "tokens":
        shape = {f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in
                 (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
        config: Any = BartConfig(d_model=16, dropout=dropout, decoder_start_token_id=0, forced_eos_token_id=None,
                                 max_position_embeddings=32, **shape, **ids)  # fmt: skip
        model: Any = BartForConditionalGeneration(config)
    elif kind == "shifted tokens":
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        model = GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=16, n_layer=2, n_head=2, **rates, **ids))
    else:
        config = BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=32, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
            num_labels=1 if kind == "numbers" else 3,
        )  # fmt: skip
        auto = AutoModelForTokenClassification if kind == "words" else AutoModelForSequenceClassification
        model = auto.from_config(config, attn_implementation="eager")
    task = {"words": "TOKEN_CLS", "tokens": None, "shifted tokens": None}.get(kind, "SEQ_CLS")
    options = AdapterOptions(rank=4, alpha=8)
    made = attach_adapter(model, options, use_dora=True, task_type=task, head=head_modules(model))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.to(dtype)


def rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of three to eight tokens, whose labels differ in number where they are of words or tokens."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for row in range(count):
        ids = torch.randint(3, 40, (3 + row % 6,), generator=generator).tolist()
        labels: Any = {
            "numbers": ids[0] / 40,
            "labels": [float(ids[0] % 2), float(ids[1] % 2), float(ids[2] % 2)],
            "words": [-100, *(each % 3 for each in ids[1:])],
            "tokens": ids[: 1 + row % 4],
            "shifted tokens": [-100, -100, *ids[2:]],
        }.get(kind, ids[0] % 3)
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return made


def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad the rows of a batch."""
    if isinstance(batch[0]["labels"], list) and not isinstance(batch[0]["labels"][0], float):
        return pad_right(SimpleNamespace(pad_token_id=0))(batch)
    plain = [{name: value for name, value in row.items() if name != "labels"} for row in batch]
    return {**pad_right(SimpleNamespace(pad_token_id=0))(plain), "labels": torch.tensor([r["labels"] for r in batch])}


def make_trainer(
    output: Path,
    kind: str = "rows",
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    sharded: bool = False,
    **changes: Any,
) -> Any:
    data = {name: rows(kind, count, seed) for seed, (name, count) in enumerate(COUNTS.items())}
    args = BiDoRAArguments(str(output), **{**OPTIONS, **changes})
    model = adapted(kind, dropout, dtype)
    if sharded:
        shard_base(model)
    return BiDoRATrainer(model, args, data_collator=collate, compute_loss_func=LOSSES[kind], **data)


def trained(model: Any) -> dict[str, Tensor]:
    named = model.named_parameters()
    return {name: value.detach().clone() for name, value in named if "lora_" in name or "modules_to_save" in name}


def train_all(output: Path, scenarios: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Train each scenario in both phases; return what each found and logged."""
    found = {}
    for name, options in scenarios.items():
        trainer = make_trainer(output / name, **options)
        trainer.train()
        found[name] = {"values": trained(trainer.model), "logs": logged(trainer.log_history)}
    return found


def logged(history: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was logged of numbers, without times and without the epoch, which counts passes."""
    left_out = ("phase", "epoch", "train_loss", "runtime", "per_second", "seconds", "flos", "preparation")
    return [{name: value for name, value in entry.items() if not any(t in name for t in left_out)} for entry in history]


def train_with_dropout(output: Path, sharded: bool = False) -> dict[str, Any]:
    """Search 50 steps with dropout; return what this rank read, and whether it replayed its masks.

    Returns:
        `values`; `read`, of each lower, upper and retrain pass the ids of its rows, none of a blank one; `replayed`, of
        each upper step whether two replays of the last training pass have its loss; `seeds`, of the generator at the
        first pass of each phase; `reduced`, the passes whose gradients DistributedDataParallel reduces.
    """
    options = {"max_steps": 50, "retrain_max_steps": 4, "per_device_train_batch_size": 4, "eval_strategy": "no"}
    trainer = make_trainer(output, "rows", 0.2, torch.float32, sharded, hypergradient="one-sided", **options)
    seen: dict[str, Any] = {"replayed": [], "lower": [], "upper": [], "retrain": [], "seeds": {}, "reduced": 0}
    step, training_step, next_batch = bilevel_mixin.upper_step, trainer.training_step, UpperBatches.next_batch
    losses: list[float] = []

    def ids(batch: Any) -> list[tuple[int, ...]]:
        return [
            tuple(row) for row, label in zip(batch["input_ids"].tolist(), batch["labels"], strict=True) if label >= 0
        ]

    def lower(model: Any, inputs: Any, *args: Any) -> Tensor:
        seen["lower" if trainer.phase == "search" else "retrain"].append(ids(inputs))
        seen["seeds"].setdefault(trainer.phase, torch.initial_seed())
        return training_step(model, inputs, *args)

    def upper(batches: UpperBatches) -> list[Any]:
        read = next_batch(batches)
        seen["upper"] += [ids(batch) for batch in read]
        return read

    def compute_loss(model: Any, *args: Any, **named: Any) -> Any:
        seen["reduced"] += isinstance(model, DistributedDataParallel)
        loss = type(trainer).compute_loss(trainer, model, *args, **named)
        losses.append(loss.item())
        return loss

    def replaying(estimator: Any, problem: Any, *args: Any, **named: Any) -> Any:
        trained_loss = losses[-1]
        seen["replayed"] += [[loss().item() == trained_loss for _ in range(2)] for loss in problem.lower_losses]
        return step(estimator, problem, *args, **named)

    trainer.training_step, trainer.compute_loss = lower, compute_loss
    bilevel_mixin.upper_step, UpperBatches.next_batch = replaying, upper
    try:
        trainer.train()
    finally:
        bilevel_mixin.upper_step, UpperBatches.next_batch = step, next_batch
    return {**seen, "values": trained(trainer.model)}


class Killed(Exception):
    """Stands for a kill of all ranks at once: nothing of the trainer runs after it."""


class KillAt(TrainerCallback):
    def __init__(self, phase: str, step: int) -> None:
        self.phase, self.step = phase, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == self.phase and state.global_step == self.step:
            raise Killed


Place = tuple[str, int]  # a phase and a step of it


def train_from(output: Path, resume: bool, kill: Place | None = None, **options: Any) -> dict[str, Tensor] | None:
    """Train, or go on with what is in a folder; return what was found, None where it was killed."""
    trainer = make_trainer(output, **options)
    if kill is not None:
        trainer.add_callback(KillAt(*kill))
    try:
        trainer.train(resume_from_checkpoint=resume)
    except Killed:
        return None
    return trained(trainer.model)


def save_slowly(output: Path) -> list[bool]:
    """Return of each checkpoint whether it had what a slow second rank writes when it was declared whole."""
    whole = []

    save = Trainer._save_rng_state

    def slow(trainer: Any, output_dir: str) -> None:
        time.sleep(0.3 * trainer.args.process_index)
        save(trainer, output_dir)

    write = TrainerState.save_to_json

    def declare(state: TrainerState, path: str) -> None:
        whole.append((Path(path).parent / "rng_state_1.pth").is_file())
        write(state, path)

    trainer = make_trainer(output, max_steps=2, retrain_max_steps=1, save_strategy="steps", save_steps=1)
    TrainerState.save_to_json, Trainer._save_rng_state = declare, slow
    try:
        trainer.train()
    finally:
        TrainerState.save_to_json, Trainer._save_rng_state = write, save
    return whole


def resume_all(
    output: Path, same: dict[Place, Any], place: Place, cut: dict[Path, Any], resumed: dict[Path, Any]
) -> dict[str, Any]:
    """Resume runs of as many ranks, kill some that others go on with, and go on with some of another.

    Args:
        output: of what is trained here alone.
        same: options of runs that are killed and resumed, by where they are killed.
        place: where those of `cut` are killed.
        cut: options of runs that are killed here, by their folder.
        resumed: options of runs that are gone on with here, by their folder.
    """
    found: dict[str, Any] = {"same": [], "whole": save_slowly(output / "slow")}
    for number, (killed, options) in enumerate(same.items()):
        whole = train_from(output / f"whole-{number}", False, **options)
        assert train_from(output / f"cut-{number}", False, killed, **options) is None
        found["same"].append((whole, train_from(output / f"cut-{number}", True, **options)))
    for folder, options in cut.items():
        assert train_from(folder, False, place, **options) is None
    found["resumed"] = [train_from(folder, True, **options) for folder, options in resumed.items()]
    return found


def polynomial_problem(name: str, polynomial: Polynomial) -> tuple[Estimator, Any]:
    """Return an estimator, its options bound, and what makes a problem for it."""
    difference = {"xi": 0.7, "radius": 1e-4}
    estimators: dict[str, Estimator] = {
        "central": partial(central_difference_hypergradient, **difference),
        "one-sided": partial(one_sided_difference_hypergradient, **difference),
        "reused": partial(one_sided_difference_hypergradient, **difference),
        "exact": partial(exact_hypergradient, xi=0.7),
        "first-order": direct_gradient,
        "value-function-free": partial(value_function_free_gradient, penalty=3.0),
    }

    def problem(part: int | None = None, **options: Any) -> BilevelProblem:
        whole = polynomial.problem()
        lower, upper = whole.lower_losses, whole.upper_losses
        if part is not None:  # of two ranks, whose mean is taken
            lower, upper = [replayed(partial(_twice, lower[part]))], [partial(_twice, upper[part])]
        if name == "reused":
            options["lower_magnitude_gradient"] = loss_and_gradient(lower, polynomial.magnitude)[1]
        return BilevelProblem(lower, upper, polynomial.direction, polynomial.magnitude, **options)

    return estimators[name], problem


def _twice(loss: Any) -> Tensor:
    return 2 * loss()


def parts_of(gradient: UpperGradient) -> dict[str, Tensor]:
    """Return what a gradient is made of, flat."""
    parts = {"total": gradient.total, "direct": gradient.direct, "implicit": gradient.implicit}
    parts |= {} if gradient.lower is None else {"lower": gradient.lower}
    return {"loss": gradient.upper_loss, **{name: flat(tensors) for name, tensors in parts.items()}}


def estimate_all(_folder: Path, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """Estimate on two ranks, each with one of the two unequal parts of both losses."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    found = {}
    for name in names:
        estimator, problem = polynomial_problem(name, Polynomial(0.3))
        found[name] = parts_of(estimator(problem(rank, reduction=mean_over_ranks)))
    mixed = [torch.tensor(float(rank)), torch.full((2, 3), 1.0 + rank, dtype=torch.bfloat16)]
    mean = mean_over_ranks([*mixed, torch.full((1,), 2.0 + rank).half()])
    return {**found, "mean": {str(place): each for place, each in enumerate(mean)}}


class Unsendable(Exception):
    """An error that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("not to be sent")


def said(work: Any) -> tuple[str, Any]:
    """Return the type of an error and what it says, or the value."""
    try:
        return "value", work()
    except Exception as error:
        return type(error).__name__, error.args


def agree(_folder: Path) -> dict[str, Any]:
    """Return what this rank has of work of the first and of all."""
    torch.distributed.init_process_group("gloo")
    rank = ranks.rank()

    def fail(kind: type[Exception], *arguments: str) -> Any:
        raise kind(*arguments)

    mine = f"of rank {rank}"
    return {
        "rank": rank,
        "found": said(lambda: ranks.on_first(lambda: mine)),
        "raised": said(lambda: ranks.on_first(lambda: fail(DataError, "one is wrong", "two is wrong"))),
        "not sent": said(lambda: ranks.on_first(lambda: fail(Unsendable, mine))),
        "well": said(lambda: ranks.together(lambda: mine)),
        "of the second": said(lambda: ranks.together(lambda: rank and fail(DataError, mine))),
        "own": said(lambda: ranks.together(lambda: fail(DataError, mine))),
        "drawn": draw_after(lambda: ranks.seed_by_rank(7)),
        "merged": ranks.merged([mine if place % 2 == rank else None for place in range(5)]),
    }


def draw_after(seed: Any) -> list[float]:
    """Return what is drawn after seeding."""
    set_seed(7)
    seed()
    return [*torch.rand(2).tolist(), *np.random.rand(2).tolist(), random.random()]
