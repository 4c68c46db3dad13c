"""A lane becomes what its run alone becomes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments, default_data_collator

from peft_bidora.errors import CheckpointError
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
        rank, alpha, dropout = 4, options.pop("alpha", 8), options.pop("dropout", 0.0)
        if method != "bidora":
            options = {name: value for name, value in options.items() if name in TrainingArguments.__dataclass_fields__}
        model = make_adapted(dropout, use_dora=method != "lora", rank=rank, alpha=alpha).double()
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
    methods, changes = ["bidora"] * 3, {"hypergradient": estimator, "max_steps": 16, "retrain_max_steps": 14}
    lanes, model = lanes_of(make, methods, **changes)
    train_lanes(model, lanes, default_data_collator, tmp_path / "lanes.pt")
    assert_same_as_alone(make, lanes, methods, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"xi": "adam"},
        {"xi": "lower-learning-rate"},
        {"retrain_from": "initial"},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"load_best_model_at_end": False},
        {"settled": 1.0, "max_steps": 25, "lower_steps": 1},  # which ends the search after ten upper steps
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
    changes = {"max_grad_norm": 0.01}  # which no gradient is below
    lanes, model = lanes_of(make, methods, **changes)
    train_lanes(model, lanes, default_data_collator, tmp_path / "lanes.pt")
    assert_same_as_alone(make, lanes, methods, **changes)


def test_lane_of_dropout_draws_for_itself_and_pairs_its_masks(make: Any, tmp_path: Path) -> None:
    """With two lanes alike but for the masks, both learn, and not the same."""
    lanes = []
    for name in ("a", "b"):
        trainer = make("bidora", 0, name, dropout=0.3)
        lanes.append(Lane.of(name, trainer))
    before = {name: value.clone() for name, value in lanes[0].values.items()}
    train_lanes(trainer.model, lanes, default_data_collator, tmp_path / "lanes.pt")
    names = [name for name in before if "lora_B" in name]
    assert all(not torch.equal(lanes[0].values[name], before[name]) for name in names)
    assert all(not torch.equal(lanes[0].values[name], lanes[1].values[name]) for name in names)


@pytest.mark.parametrize("change", ["rates", "rows", "divergence"])
@pytest.mark.parametrize("methods", [["bidora"] * 3, ["lora", "dora", "bidora"]], ids=str)
def test_no_bit_of_a_lane_depends_on_another(make: Any, methods: list[str], change: str, tmp_path: Path) -> None:
    def train(changed: bool) -> list[Lane]:
        lanes, model = lanes_of(make, methods)
        other = lanes[1]
        if changed and change == "rates":
            for args in other.arguments.values():
                args.learning_rate, args.weight_decay, args.max_grad_norm = 0.2, 0.5, 0.01
        if changed and change == "rows":
            other.rows = {
                part: [{**row, "labels": 1 - row["labels"], "input_ids": row["input_ids"][::-1]} for row in rows]
                for part, rows in other.rows.items()
            }
        if changed and change == "divergence":
            for args in other.arguments.values():
                args.learning_rate, args.max_grad_norm = 1e300, 0.0
        train_lanes(model, lanes, default_data_collator, tmp_path / f"{changed}.pt")
        return lanes

    plain, changed = train(False), train(True)
    for index in (0, 2):
        for name, value in plain[index].values.items():
            assert torch.equal(value, changed[index].values[name]), name
        assert plain[index].log == changed[index].log
    assert any(not torch.equal(value, changed[1].values[name]) for name, value in plain[1].values.items())
    assert (changed[1].stopped is not None) == (change == "divergence")


def test_lane_that_diverges_is_told_with_its_step_and_left_finite(make: Any, tmp_path: Path) -> None:
    lanes, model = lanes_of(make, ["dora", "dora"])
    lanes[1].arguments["retrain"].learning_rate = 1e300
    lanes[1].arguments["retrain"].max_grad_norm = 0.0
    train_lanes(model, lanes, default_data_collator, tmp_path / "lanes.pt")
    assert lanes[0].stopped is None
    assert lanes[1].stopped is not None
    assert all(bool(value.isfinite().all()) for value in lanes[1].values.values())
    assert re.search(r"retrain step \d: the loss is .* both must be finite\. Lower the learning rate", lanes[1].stopped)


class Killed(Exception):
    pass


def kill_at(phase: str, step: int) -> Any:
    def watch(now: str, done: int, _steps: int, _best: list[float]) -> None:
        if (now, done) == (phase, step):
            raise Killed

    return watch


@pytest.mark.parametrize(
    ("phase", "step"), [("search", 1), ("search", 4), ("search", 7), ("retrain", 2), ("retrain", 5)]
)
@pytest.mark.parametrize("methods", [["bidora"] * 2, ["lora", "dora", "bidora"]], ids=str)
def test_killed_and_resumed_lanes_are_bit_identical(
    make: Any, methods: list[str], phase: str, step: int, tmp_path: Path
) -> None:
    whole, model = lanes_of(make, methods, dropout=0.1)
    train_lanes(model, whole, default_data_collator, tmp_path / "whole.pt")
    cut, model = lanes_of(make, methods, dropout=0.1)
    with pytest.raises(Killed):
        train_lanes(model, cut, default_data_collator, tmp_path / "cut.pt", kill_at(phase, step))
    resumed, model = lanes_of(make, methods, dropout=0.1)
    train_lanes(model, resumed, default_data_collator, tmp_path / "cut.pt")
    for one, other in zip(whole, resumed, strict=True):
        assert one.values.keys() == other.values.keys()
        assert all(torch.equal(value, other.values[name]) for name, value in one.values.items())
        assert (one.log, one.kept) == (other.log, other.kept)


def test_stopped_lane_stays_stopped_after_a_resume_and_the_others_the_same(make: Any, tmp_path: Path) -> None:
    def diverging() -> tuple[list[Lane], Any]:
        lanes, model = lanes_of(make, ["bidora", "bidora"], dropout=0.1)
        lanes[0].arguments["search"].learning_rate, lanes[0].arguments["search"].max_grad_norm = 1e300, 0.0
        return lanes, model

    whole, model = diverging()
    train_lanes(model, whole, default_data_collator, tmp_path / "whole.pt")
    for phase, step in (("search", 5), ("retrain", 4)):
        cut, model = diverging()
        with pytest.raises(Killed):
            train_lanes(model, cut, default_data_collator, tmp_path / f"{phase}.pt", kill_at(phase, step))
        resumed, model = diverging()
        train_lanes(model, resumed, default_data_collator, tmp_path / f"{phase}.pt")
        assert resumed[0].stopped == whole[0].stopped is not None
        assert resumed[1].stopped is None
        assert all(torch.equal(value, resumed[1].values[name]) for name, value in whole[1].values.items())


def test_damaged_checkpoint_is_named(make: Any, tmp_path: Path) -> None:
    lanes, model = lanes_of(make, ["lora"])
    (tmp_path / "lanes.pt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"lanes\.pt cannot be read .* Remove it"):
        train_lanes(model, lanes, default_data_collator, tmp_path / "lanes.pt")


def test_rows_of_like_length_go_together_and_the_batch_stays_whole(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Fewer rows a pass change nothing but the padding."""
    found = []
    for rows in (1, 1000):
        monkeypatch.setattr("peft_bidora.training.lane_passes.ROWS_ON_CPU", rows)
        lanes, model = lanes_of(make, ["bidora"] * 2)
        passes = count_passes(model)
        train_lanes(model, lanes, default_data_collator, tmp_path / f"{rows}.pt")
        found.append((lanes, len(passes)))
    (many, passes), (one, fewer) = found
    assert passes > 3 * fewer
    for left, right in zip(many, one, strict=True):
        for name, value in left.values.items():
            torch.testing.assert_close(value, right.values[name], rtol=0, atol=1e-10)


def count_passes(model: torch.nn.Module) -> list[int]:
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    return passes


def test_trainer_whose_loss_is_not_told_from_logits_is_refused(make: Any) -> None:
    trainer = make("lora", 0, "lanes")
    trainer.compute_loss_func = None
    with pytest.raises(ValueError, match="compute_loss_func"):
        Lane.of("name", trainer)
    trainer.model = trainer.model.get_base_model()
    with pytest.raises(ValueError, match="a PEFT model"):
        Lane.of("name", trainer)


def test_label_of_a_first_token_that_nothing_predicts_is_no_item(make: Any) -> None:
    lane = Lane.of("name", make("lora", 0, "lanes"))
    rows = [{"labels": [5, 6, -100]}, {"labels": [7, 8, 9]}]
    assert (lane.items(rows), replace(lane, shifted=True).items(rows)) == (5, 3)
