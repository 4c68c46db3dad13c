"""Tiny models and data, made on the spot."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter, head_modules

# Tiny tensors gain nothing from threads, and spinning ones starve each other where tests run side by side.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def frozen_imports() -> None:
    """Take what was imported out of garbage collection, which every Trainer asks for when it starts."""
    gc.freeze()


def tiny_bert(dropout: float = 0.0, labels: int = 2) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=labels,
    )
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


@pytest.fixture
def make_adapted() -> Callable[..., Any]:
    """A tiny BERT with an adapter; B is not zero, so that every gradient is alive."""

    def make(dropout: float = 0.0, seed: int = 0, labels: int = 2, use_dora: bool = True, **options: Any) -> Any:
        torch.manual_seed(seed)
        model = tiny_bert(dropout, labels)
        options = {"rank": 4, "alpha": 8, **options}
        adapted = attach_adapter(
            model, AdapterOptions(**options), use_dora=use_dora, task_type="SEQ_CLS", head=head_modules(model)
        )
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return adapted

    return make


@pytest.fixture
def make_rows() -> Callable[..., list[dict[str, list[int] | int]]]:
    """Encoded rows whose label can be learned from their first token."""

    def make(count: int, seed: int = 0) -> list[dict[str, list[int] | int]]:
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for _ in range(count):
            ids = torch.randint(1, 40, (6,), generator=generator).tolist()
            rows.append({"input_ids": ids, "attention_mask": [1] * 6, "labels": int(ids[0] > 20)})
        return rows

    return make
