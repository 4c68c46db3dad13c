"""A tiny random model of each family that has its own names and layers."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    EsmConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter, head_modules

ENCODER = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
# Grouped heads make value projections rectangular, (8, 16).
DECODER = {**ENCODER, "num_key_value_heads": 1}
PATCHES = {
    key: ENCODER[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
}
# By family: the configuration, the query and value projections, the head.
FAMILIES: dict[str, tuple[Callable[[], Any], list[str], list[str]]] = {
    "bert": (lambda: BertConfig(**ENCODER), ["query", "value"], ["classifier"]),
    "roberta": (lambda: RobertaConfig(**ENCODER), ["query", "value"], ["classifier"]),
    "deberta-v2": (lambda: DebertaV2Config(**ENCODER), ["query_proj", "value_proj"], ["pooler", "classifier"]),
    "distilbert": (
        lambda: DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, pad_token_id=0),
        ["q_lin", "v_lin"],
        ["pre_classifier", "classifier"],
    ),
    "gpt2": (
        lambda: GPT2Config(
            vocab_size=40,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        ),
        ["c_attn"],
        ["score"],
    ),
    "llama": (lambda: LlamaConfig(**DECODER), ["q_proj", "v_proj"], ["score"]),
    "qwen2": (lambda: Qwen2Config(**DECODER), ["q_proj", "v_proj"], ["score"]),
    "mistral": (lambda: MistralConfig(**DECODER), ["q_proj", "v_proj"], ["score"]),
    "t5": (
        lambda: T5Config(
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        ),
        ["q", "v"],
        ["classification_head"],
    ),
    "esm": (lambda: EsmConfig(**ENCODER, mask_token_id=4), ["query", "value"], ["classifier"]),
    "vit": (lambda: ViTConfig(**PATCHES, image_size=8, patch_size=4), ["q_proj", "v_proj"], ["classifier"]),
}


def make_model(family: str) -> nn.Module:
    config = FAMILIES[family][0]()
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    config.num_labels = 3
    torch.manual_seed(0)
    return auto.from_config(config).eval()


def make_batch(family: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=generator)}
    ids = torch.randint(5, 40, (4, 7), generator=generator)
    ids[:, -1] = 1  # T5 reads the representation of its end token
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def attach(model: nn.Module, target_modules: Any = None, **options: Any) -> PeftModel:
    task = "SEQ_CLS" if model.main_input_name == "input_ids" else None
    return attach_adapter(
        model,
        AdapterOptions(rank=4, alpha=12, target_modules=target_modules, **options),
        use_dora=True,
        task_type=task,
        head=head_modules(model),
    )
