"""Tiny models and data, made on the spot."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

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


WORDS = ("red", "blue", "fox", "cat", "runs", "sits", "say", "now")
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_template() -> str:
    return CHAT_TEMPLATE


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A byte-level BPE tokenizer that knows a few words; `start` is put before every text."""

    def make(chat_template: str | None = None, start: bool = False, **options: Any) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<end>", "<pad>", "<start>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([f"{a} {b}" for a in WORDS for b in WORDS], trainer)
        if start:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 0)]
            )
        names = {"eos_token": "<end>", "pad_token": "<pad>", "bos_token": "<start>", **options}
        made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
        made.chat_template = chat_template
        return made

    return make


@pytest.fixture
def make_language_model() -> Callable[..., PreTrainedModel]:
    """A tiny model that writes, of random weights large enough that what it reads matters: "gpt2", "t5" or "bart"."""

    def make(architecture: str, dropout: float = 0.0, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        ids = {"vocab_size": 300, "eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 2}
        if architecture == "gpt2":
            rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
            return GPT2LMHeadModel(
                GPT2Config(n_positions=48, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5, **rates, **ids)
            )
        if architecture == "t5":
            shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "initializer_factor": 2.0}
            return T5ForConditionalGeneration(
                T5Config(dropout_rate=dropout, decoder_start_token_id=1, tie_word_embeddings=False, **shape, **ids)
            )
        shape = {f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in
                 (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
        return BartForConditionalGeneration(
            BartConfig(d_model=16, init_std=0.5, max_position_embeddings=48, dropout=dropout, decoder_start_token_id=0,
                       forced_eos_token_id=None, **shape, **ids)
        )  # fmt: skip

    return make
