"""A lane becomes what its run alone becomes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments, default_data_collator

from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.lane import Lane
from peft_bidora.training.lanes import train_lanes
from peft_bidora.training.trainer import BiDoRATrainer

COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 2,
    "save_strategy": "steps",
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_steps": 3,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "greater_is_better": True,
    "warmup_steps": 0.2,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}
SEARCH = {"max_steps": 7, "retrain_max_steps": 6, "upper_learning_rate": 3e-2, "lower_steps": 2, "orthogonality": 0.1}
# What lanes may differ in.
DIFFERENCES: list[dict[str, Any]] = [
    {"seed": 3},
    {"seed": 4, "learning_rate": 3e-2, "weight_decay": 0.1, "max_grad_norm": 0.05},
    {
        "seed": 5,
        "upper_learning_rate": 1e-2,
        "orthogonality": 1.0,
        "xi": 0.3,
        "alpha": 3,
        "retrain_learning_rate": 2e-2,
    },
]


def mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    items = labels.numel() if num_items_in_batch is None else num_items_in_batch
    return cross_entropy(outputs["logits"], labels, reduction="sum") / items


@pytest.fixture
def make(make_adapted: Any, make_rows: Any, tmp_path: Path) -> Any:
    """Return the Trainer of a run alone, in float64."""

    def made(method: str, lane: int, output: str, **changes: Any) -> ExactTrainer:
        options = {**COMMON, **(SEARCH if method == "bidora" else {"max_steps": 6}), **DIFFERENCES[lane], **changes}
        rank, alpha = 4, options.pop("alpha", 8)
        if method != "bidora":
            options = {name: value for name, value in options.items() if name in TrainingArguments.__dataclass_fields__}
        model = make_adapted(use_dora=method != "lora", rank=rank, alpha=alpha).double()
        generator = torch.Generator().manual_seed(lane)
        with torch.no_grad():  # over one base model each lane has an adapter of its own
            for name, p in model.named_parameters():
                if p.requires_grad and "magnitude" not in name:
                    p.copy_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        lower, upper = make_rows(10 + lane, seed=10 * lane + 1), make_rows(7, seed=10 * lane + 2)
        shared = {
            "model": model,
            "eval_dataset": make_rows(6, seed=10 * lane + 3),
            "data_collator": default_data_collator,
            "compute_loss_func": mean_loss,
            "compute_metrics": lambda output: {"accuracy": (output.predictions.argmax(-1) == output.label_ids).mean()},
        }
        folder = str(tmp_path / output / f"{method}-{lane}")
        if method == "bidora":
            return BiDoRATrainer(
                args=BiDoRAArguments(folder, **options), train_dataset=lower, upper_dataset=upper, **shared
            )
        return ExactTrainer(args=TrainingArguments(folder, **options), train_dataset=lower + upper, **shared)

    return made


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {name: p.detach().clone() for name, p in named if "lora_" in name or "modules_to_save" in name}


def lanes_of(make: Any, methods: list[str], **changes: Any) -> tuple[list[Lane], Any]:
    """Return the lanes, and the model of the first with magnitudes to compute with."""
    lanes, model = [], None
    for index, method in enumerate(methods):
        trainer = make(method, index, "lanes", **changes)
        lanes.append(Lane.of(f"{method}-{index}", trainer))
        model = trainer.model if model is None or method != "lora" else model
    return lanes, model


def assert_same_as_alone(make: Any, lanes: list[Lane], methods: list[str], **changes: Any) -> None:
    for index, (method, lane) in enumerate(zip(methods, lanes, strict=True)):
        alone = make(method, index, "alone", **changes)
        alone.train()
        expected = trained(alone.model)
        assert expected.keys() == lane.values.keys()
        for name, value in lane.values.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-10, msg=f"{lane.name}: {name}")


ESTIMATORS = ["one-sided", "finite-difference", "exact", "first-order", "pbgd-free"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_lane_of_bidora_is_the_run_alone(make: Any, estimator: str, tmp_path: Path) -> None:
    methods, changes = ["bidora"] * 3, {"hypergradient": estimator}
    lanes, model = lanes_of(make, methods, **changes)
    train_lanes(model, lanes, default_data_collator, tmp_path / "lanes.pt")
    assert_same_as_alone(make, lanes, methods, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"xi": "adam"},
        {"xi": "lower-learning-rate"},
        {"retrain_from": "search"},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"load_best_model_at_end": False},
        {"settled": 1.0},
        {"upper_batch_size": 3, "lower_steps": 1},
        {"lr_scheduler_type": "cosine", "upper_lr_scheduler_type": "linear"},
    ],
    ids=str,
)
def test_options_of_a_lane_are_those_of_the_run_alone(make: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    methods = ["bidora"] * 2
    lanes, model = lanes_of(make, methods, **changes)
    train_lanes(model, lanes, default_data_collator, tmp_path / "lanes.pt")
    assert_same_as_alone(make, lanes, methods, **changes)


@pytest.mark.parametrize(
    "methods", [["lora"] * 3, ["dora"] * 3, ["lora", "dora", "bidora"], ["bidora", "lora", "lora"]], ids=str
)
def test_lanes_of_several_methods_are_the_runs_alone(make: Any, methods: list[str], tmp_path: Path) -> None:
    lanes, model = lanes_of(make, methods)
    train_lanes(model, lanes, default_data_collator, tmp_path / "lanes.pt")
    assert_same_as_alone(make, lanes, methods)
