"""What Trainer leaves inexact and is mended, on a model that is trained whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, TrainingArguments

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
