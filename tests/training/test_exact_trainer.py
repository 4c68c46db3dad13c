"""What Trainer leaves inexact and is mended."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
)

from peft_bidora.errors import NonFiniteError
from peft_bidora.training.exact_trainer import ExactTrainer


@pytest.fixture
def old_model(make_adapted, tmp_path: Path) -> Path:
    """A model whose file has the names of the first BERT: LayerNorm.gamma and LayerNorm.beta."""
    folder = tmp_path / "old"
    make_adapted().unload().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    assert old.keys() != weights.keys()
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_trainer(folder: Path, rows, output: Path) -> ExactTrainer:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert isinstance(model, BertForSequenceClassification)
    args = TrainingArguments(
        str(output), max_steps=4, save_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    return ExactTrainer(model=model, args=args, train_dataset=rows)


def test_resumed_model_of_an_old_file_is_bit_identical(old_model: Path, make_rows, tmp_path: Path) -> None:
    whole = make_trainer(old_model, make_rows(16), tmp_path / "run")
    whole.train()
    resumed = make_trainer(old_model, make_rows(16), tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_saved_model_keeps_the_names_of_its_file(old_model: Path, make_rows, tmp_path: Path) -> None:
    trainer = make_trainer(old_model, make_rows(16), tmp_path / "run")
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "saved")
    assert (
        load_file(tmp_path / "saved" / "model.safetensors").keys() == load_file(old_model / "model.safetensors").keys()
    )


def adapted_trainer(model: Any, rows: Any, output: Path, **options: Any) -> ExactTrainer:
    options = {"max_steps": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "save_steps": 2, **options}
    args = TrainingArguments(str(output), report_to=[], use_cpu=True, disable_tqdm=True, **options)
    return ExactTrainer(model=model, args=args, train_dataset=rows(16), eval_dataset=rows(8, seed=1))


def test_ended_training_is_taken_over_without_a_step_more(make_adapted, make_rows, tmp_path: Path) -> None:
    whole = adapted_trainer(make_adapted(0.1), make_rows, tmp_path)
    trained = whole.train()
    resumed = adapted_trainer(make_adapted(0.1, seed=1), make_rows, tmp_path)
    output = resumed.train(resume_from_checkpoint=True)
    assert output.global_step == trained.global_step == 4
    assert_same_adapter(whole, resumed)


def test_ended_training_is_taken_over_with_its_best_model(make_adapted, make_rows, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "loss", "greater_is_better": True, "learning_rate": 3.0}
    whole = adapted_trainer(make_adapted(), make_rows, tmp_path / "run", **options)
    whole.train()
    best = Path(whole.state.best_model_checkpoint or "")
    assert best.name == "checkpoint-2"  # the greater loss, so that it is not the last
    (tmp_path / "run").rename(tmp_path / "moved")
    resumed = adapted_trainer(make_adapted(seed=1), make_rows, tmp_path / "moved", **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_adapter(whole, resumed)


def assert_same_adapter(left: ExactTrainer, right: ExactTrainer) -> None:
    others = right.model.state_dict()
    trained = [name for name in others if "lora_" in name or "modules_to_save" in name]
    assert trained
    for name, value in left.model.state_dict().items():
        if name in trained:
            assert torch.equal(others[name], value), name


@pytest.mark.parametrize("save_strategy", ["steps", "no"])
def test_parameters_that_are_not_finite_are_never_saved(make_adapted, make_rows, tmp_path, save_strategy: str) -> None:
    trainer = adapted_trainer(make_adapted(), make_rows, tmp_path, save_strategy=save_strategy, logging_steps=100)

    class Spoil(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                next(p for p in trainer.model.parameters() if p.requires_grad).data[0, 0] = float("nan")

    trainer.add_callback(Spoil())
    with pytest.raises(NonFiniteError, match=r"step 4 in .*lora_A\S* holds values that are not finite"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"] * (save_strategy == "steps")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_accumulated_quarter_batches_equal_the_whole_batch(make_adapted, make_rows, tmp_path, smoothing) -> None:
    models = []
    for size, accumulation in ((8, 1), (2, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "optim": "sgd"}
        trainer = adapted_trainer(
            make_adapted(use_dora=False).double(), make_rows, tmp_path, label_smoothing_factor=smoothing, **options
        )
        trainer.train()
        models.append(trainer.model.state_dict())
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-7, atol=1e-9)


def test_evaluation_follows_averaged_weights_that_are_written_into_data(make_adapted, make_rows, tmp_path) -> None:
    trainer = adapted_trainer(make_adapted(), make_rows, tmp_path)
    before = trainer.evaluate()["eval_loss"]
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(2)
    assert trainer.evaluate()["eval_loss"] != before


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_what_a_callback_evaluates_leaves_the_generators_alone(make_adapted, make_rows, tmp_path, method: str) -> None:
    trainer = adapted_trainer(make_adapted(), make_rows, tmp_path)
    before = torch.get_rng_state()
    getattr(trainer, method)(make_rows(8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("losses", "kept"), [([3.0, 1.0, 2.0], 4), ([1.0, 2.0, 1.0], 2), ([1.0, 2.0, 0.5], 6)])
def test_of_evaluations_that_are_level_the_one_with_the_lowest_loss_is_kept(
    make_adapted, make_rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], kept: int
) -> None:
    options = {"load_best_model_at_end": True, "metric_for_best_model": "f1", "greater_is_better": True}
    trainer = adapted_trainer(
        make_adapted(),
        make_rows,
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        logging_steps=2,
        max_steps=6,
        **options,
    )
    loss_at = dict(zip((2, 4, 6), losses, strict=True))

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_f1": 0.5, "eval_loss": loss_at[trainer.state.global_step]}
        trainer.log(metrics)
        return metrics

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    trainer.train()
    assert trainer.state.best_global_step == kept
    assert trainer.state.best_model_checkpoint is not None
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{kept}")
