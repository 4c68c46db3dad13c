"""What ranks do in tests; importing it imports all that they need."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, default_data_collator

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter, head_modules
from peft_bidora.training import bilevel_mixin
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.trainer import BiDoRATrainer

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


def adapted(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Any:
    """A tiny BERT with an adapter whose B is not zero, so that every gradient is alive."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, num_labels=3,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    options = AdapterOptions(rank=4, alpha=8)
    made = attach_adapter(model, options, use_dora=True, task_type="SEQ_CLS", head=head_modules(model))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.to(dtype)


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(1, 40, (6,), generator=generator).tolist()
        made.append({"input_ids": ids, "attention_mask": [1] * 6, "labels": ids[0] % 3})
    return made


def make_trainer(output: Path, dropout: float = 0.0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    data = {name: rows(count, seed) for seed, (name, count) in enumerate(COUNTS.items())}
    args = BiDoRAArguments(str(output), **{**OPTIONS, **changes})
    return BiDoRATrainer(adapted(dropout, dtype), args, data_collator=default_data_collator, **data)


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
    left_out = ("phase", "epoch", "runtime", "per_second", "seconds", "flos", "preparation")
    return [{name: value for name, value in entry.items() if not any(t in name for t in left_out)} for entry in history]


def train_with_dropout(output: Path) -> dict[str, Any]:
    """Search 50 steps with dropout; return what each rank had in its hands at each upper step."""
    trainer = make_trainer(output, 0.2, torch.float32, max_steps=50, retrain_max_steps=4, hypergradient="one-sided")
    seen: dict[str, Any] = {"replayed": [], "lower": [], "rows": []}
    step, compute_loss, losses = bilevel_mixin.upper_step, trainer.compute_loss, []

    def spy(model: Any, inputs: Any, **options: Any) -> Any:
        seen["rows"].append((trainer.phase, inputs["input_ids"].tolist(), inputs["labels"].tolist()))
        loss = compute_loss(model, inputs, **options)
        losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss

    def replaying(estimator: Any, problem: Any, *args: Any, **options: Any) -> Any:
        trained_loss = losses[-1]
        seen["lower"].append(trained_loss)
        seen["replayed"] += [loss().item() == trained_loss for loss in problem.lower_losses for _ in range(2)]
        return step(estimator, problem, *args, **options)

    trainer.compute_loss, bilevel_mixin.upper_step = spy, replaying
    try:
        trainer.train()
    finally:
        bilevel_mixin.upper_step = step
    return {**seen, "values": trained(trainer.model)}
