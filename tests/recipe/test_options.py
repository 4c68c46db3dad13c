"""What a recipe's sections become among the Trainer's arguments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from peft_bidora.errors import RecipeError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.options import baseline_arguments, bidora_arguments, check_read, phase_steps
from peft_bidora.recipe.schema import RetrainSection
from peft_bidora.tasks.registry import TASKS
from peft_bidora.tasks.regression import Regression
from peft_bidora.tasks.sequence_classification import SequenceClassification
from peft_bidora.tasks.text_generation import TextGeneration

Make = Callable[..., Path]
CLASSES = SequenceClassification(("a", "b"))


class OneWeight(nn.Module):
    """A model that learns nothing in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.weight * x.sum()}


@pytest.mark.parametrize(("rows", "batch", "accumulation", "epochs"), [
    (29, 4, 1, 0.5), (29, 4, 2, 1.0), (29, 4, 3, 1.5), (3, 4, 2, 2.0), (40, 8, 1, 0.01), (7, 2, 8, 1.0),
])  # fmt: skip
def test_steps_of_epochs_are_those_that_trainer_takes(
    rows: int, batch: int, accumulation: int, epochs: float, tmp_path: Path
) -> None:
    section = RetrainSection(epochs=epochs, batch_size=batch, gradient_accumulation_steps=accumulation)
    args = TrainingArguments(
        str(tmp_path), num_train_epochs=epochs, per_device_train_batch_size=batch, report_to=[], use_cpu=True,
        gradient_accumulation_steps=accumulation, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(OneWeight(), args, train_dataset=[{"x": torch.ones(1)}] * rows)
    trainer.train()
    assert phase_steps(section, rows) == trainer.state.global_step


def test_each_phase_has_its_own_section(make_recipe: Make) -> None:
    changes = {"search__learning_rate": 0.1, "retrain__learning_rate": 0.2, "retrain__warmup_fraction": 0.3}
    recipe = load_recipe(make_recipe(retrain__steps=None, retrain__epochs=2.0, **changes))
    both = bidora_arguments(recipe, CLASSES, True)
    assert both.output_dir == str(recipe.output)
    assert (both.learning_rate, both.max_steps, both.lower_steps) == (0.1, 4, 2)
    assert (both.retrain_learning_rate, both.retrain_num_train_epochs, both.retrain_max_steps) == (0.2, 2.0, -1)
    assert both.retrain_warmup_steps == 0.3
    baseline = baseline_arguments(recipe, CLASSES, True)
    assert baseline.output_dir == str(recipe.output / "retrain")
    assert (baseline.learning_rate, baseline.num_train_epochs, baseline.warmup_steps) == (0.2, 2.0, 0.3)


@pytest.mark.parametrize(
    ("task", "chosen", "expected"),
    [
        (CLASSES, None, ("accuracy", True)),
        (CLASSES, "ece", ("ece", False)),
        (Regression(0.0, 1.0), "mae", ("mae", False)),
        (TextGeneration(False, "", {}, 0), None, ("loss", False)),
    ],
)
def test_best_checkpoint_is_chosen_by_the_metric_in_its_direction(
    task: Any, chosen: str | None, expected: tuple[str, bool], make_recipe: Make
) -> None:
    recipe = load_recipe(make_recipe(select_by=chosen))
    args = baseline_arguments(recipe, task, True)
    assert (args.metric_for_best_model, args.greater_is_better) == expected
    assert args.load_best_model_at_end
    assert args.prediction_loss_only == (expected[0] == "loss")


def test_without_selection_rows_nothing_is_evaluated_or_chosen(make_recipe: Make) -> None:
    args = baseline_arguments(load_recipe(make_recipe()), CLASSES, False)
    assert (args.eval_strategy, args.load_best_model_at_end) == ("no", False)


SET = {
    "classification.class_weights": "balanced",
    "classification.multi_label": "true",
    "data.sequences": "protein",
    "generation.num_beams": "4",
}
READ = {
    "sequence-classification": {"classification.class_weights", "classification.multi_label", "data.sequences"},
    "regression": {"data.sequences"},
    "token-classification": {"classification.class_weights"},
    "text-generation": {"generation.num_beams"},
}


@pytest.mark.parametrize("key", SET)
@pytest.mark.parametrize("task", TASKS)
def test_key_that_the_task_does_not_read_is_refused(task: str, key: str, make_recipe: Make) -> None:
    kind = TASKS[task]
    check_read(load_recipe(make_recipe()), kind)
    recipe = load_recipe(make_recipe(), [f"{key}={SET[key]}"])
    if key in READ[task]:
        check_read(recipe, kind)
        return
    with pytest.raises(RecipeError, match=rf"{key.split('.num_')[0]} is set, which task={task} does not read"):
        check_read(recipe, kind)
