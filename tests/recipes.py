"""A tiny model folder, data files and recipes, made on the spot: fixtures of the rooms that read recipes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ("good", "fine", "great", "bad", "poor", "awful", "the", "a", "film", "shop", "day", "very", "so", "was", "it")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers and a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def rows(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Different texts of two classes in turn."""
    made = []
    for index in range(offset, offset + count):
        label, words = ("pos", WORDS[:3]) if index % 2 else ("neg", WORDS[3:6])
        made.append({"text": f"{words[index % 3]} {WORDS[6 + index % 9]} number {index}", "label": label})
    return made


def write_rows(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


@pytest.fixture
def make_recipe(tmp_path: Path, model_folder: Path) -> Callable[..., Path]:
    """A recipe of a few steps with its data beside it; `changes` are dotted keys with `__` for the dot."""

    def make(
        train: list[dict[str, Any]] | None = None, test: list[dict[str, Any]] | None = None, **changes: Any
    ) -> Path:
        write_rows(tmp_path / "train.jsonl", rows(40) if train is None else train)
        write_rows(tmp_path / "test.jsonl", rows(12, 100) if test is None else test)
        recipe: dict[str, Any] = {
            "model": str(model_folder),
            "data": {"train": "train.jsonl", "test": "test.jsonl", "text": ["text"], "label": "label"},
            "adapter": {"rank": 2, "alpha": 4},
            "search": {"steps": 4, "batch_size": 4, "lower_steps": 2},
            "retrain": {"steps": 4, "batch_size": 4},
            "logging_steps": 2,
            "eval_steps": 2,
            "save_steps": 2,
            "output": str(tmp_path / "run"),
        }
        for name, value in changes.items():
            *sections, key = name.split("__")
            target = recipe
            for section in sections:
                target = target.setdefault(section, {})
            target[key] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return make
