"""The loss of models that write text: a mean over label tokens, however the rows are batched (contract 9)."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter, head_modules
from peft_bidora.tasks.completions import IGNORED, pad_right
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.trainer import BiDoRATrainer

ARCHITECTURES = ["gpt2", "t5", "bart"]
OPTIONS: dict[str, Any] = {
    "max_steps": 2,
    "learning_rate": 1e-2,
    "optim": "sgd",
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


def rows(architecture: str, count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows whose label tokens differ in number from one to nine."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for row in range(count):
        prompt = torch.randint(3, 300, (4,), generator=generator).tolist()
        answer = torch.randint(3, 300, (1 + 8 * (row % 2) - row % 3 * (row % 2),), generator=generator).tolist()
        ids = prompt + answer if architecture == "gpt2" else prompt
        labels = [IGNORED] * 4 + answer if architecture == "gpt2" else answer
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return made


@pytest.fixture
def make_trainer(make_tokenizer, make_language_model, tmp_path):
    def make(architecture: str, *, bidora: bool, size: int, accumulation: int, **changes: Any) -> ExactTrainer:
        model = make_language_model(architecture)
        adapted = attach_adapter(model, AdapterOptions(rank=2), use_dora=bidora, head=head_modules(model)).double()
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.manual_seed(len(name))
                torch.nn.init.normal_(parameter, std=0.1)
        options = {**OPTIONS, "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        folder = str(tmp_path / f"{size}")
        shared: dict[str, Any] = {
            "model": adapted,
            "train_dataset": rows(architecture, 8, 1),
            "eval_dataset": rows(architecture, 7, 2),
            "data_collator": pad_right(make_tokenizer()),
        }
        if not bidora:
            return ExactTrainer(args=TrainingArguments(folder, **options, **changes), **shared)
        search = {"upper_learning_rate": 3e-2, "lower_steps": 1, "adam_epsilon": 1e-3, "retrain_max_steps": 1}
        args = BiDoRAArguments(folder, **options, **search, **changes)
        return BiDoRATrainer(args=args, upper_dataset=rows(architecture, 8, 3), **shared)

    return make


def trained(trainer: ExactTrainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bidora", [True, False], ids=["bidora", "lora"])
def test_accumulated_quarter_batches_equal_the_whole_batch(architecture, bidora, make_trainer) -> None:
    whole, quarters = (
        trained(make_trainer(architecture, bidora=bidora, size=size, accumulation=8 // size)) for size in (8, 2)
    )
    # float64 sums in another order; transformers takes gpt2's loss and t5's attention from float32 numbers.
    tolerance = {"rtol": 1e-7, "atol": 1e-9} if architecture == "bart" else {"rtol": 1e-4, "atol": 1e-6}
    for name, value in whole.items():
        torch.testing.assert_close(quarters[name], value, **tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_evaluation_loss_is_the_mean_over_all_label_tokens(architecture, make_trainer) -> None:
    trainer = make_trainer(architecture, bidora=False, size=2, accumulation=1, per_device_eval_batch_size=2)
    total = tokens = 0.0
    trainer.model.eval()
    for row in rows(architecture, 7, 2):
        inputs = {name: torch.tensor([values]) for name, values in row.items()}
        with torch.no_grad():
            logits = trainer.model(**inputs).logits
        labels = inputs["labels"]
        if architecture == "gpt2":
            logits, labels = logits[:, :-1], labels[:, 1:]
        total += cross_entropy(logits[0], labels[0], ignore_index=IGNORED, reduction="sum").item()
        tokens += (labels != IGNORED).sum().item()
    assert tokens > 7
    # The loss of gpt2 is computed in float32.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / tokens, rel=1e-6)
    assert trainer.evaluate(metric_key_prefix="test")["test_loss"] == pytest.approx(total / tokens, rel=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_without_label_tokens_count_for_nothing(architecture, make_trainer) -> None:
    trainer = make_trainer(architecture, bidora=False, size=1, accumulation=2)
    inputs = {name: torch.tensor([values]) for name, values in rows(architecture, 1)[0].items()}
    masked = {**inputs, "labels": torch.full_like(inputs["labels"], IGNORED)}
    gradients = []
    for batches in ([inputs], [inputs, masked]):
        trainer.model.zero_grad()
        items = trainer._get_num_items_in_batch(batches, trainer.args.device)
        for batch in batches:
            loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=items)
            assert math.isfinite(loss.item())
            loss.backward()
        gradients.append([p.grad.clone() for p in trainer.model.parameters() if p.grad is not None])
    for alone, beside in zip(*gradients, strict=True):
        torch.testing.assert_close(beside, alone, rtol=1e-12, atol=1e-15)  # the same float64 sums and zeros


def test_training_log_is_the_mean_over_the_accumulated_label_tokens(make_trainer) -> None:
    losses = []
    for size in (8, 2):
        trainer = make_trainer("t5", bidora=False, size=size, accumulation=8 // size, logging_steps=1)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
