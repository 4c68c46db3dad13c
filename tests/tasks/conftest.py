"""Tiny models with their tokenizers: of words, and of residues."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    EsmConfig,
    EsmModel,
    EsmTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*SPECIAL, "good", "fine", "great", "bad", "poor", "awful", "film", "shop", "day", "very", "so")
# The vocabulary of ESM-2, which lacks J.
RESIDUES = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
# No dropout: parts of a batch would draw other masks than the whole.
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="session")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers and a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), WORDS, strict=False))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def esm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ESM-2 of two layers and its tokenizer of residues."""
    folder = tmp_path_factory.mktemp("esm")
    (folder / "vocab.txt").write_text("\n".join(RESIDUES))
    EsmTokenizer(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    torch.manual_seed(0)
    options = {"position_embedding_type": "rotary", "token_dropout": True, "pad_token_id": 1, "mask_token_id": 32}
    config = EsmConfig(vocab_size=len(RESIDUES), max_position_embeddings=34, **SHAPE, **options)
    EsmModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture
def language_model(
    tmp_path: Path, make_language_model: Callable[[str], PreTrainedModel], make_tokenizer: Callable[[], Any]
) -> Path:
    """A GPT-2 of two layers and its tokenizer of byte pairs."""
    make_tokenizer().save_pretrained(tmp_path / "language-model")
    make_language_model("gpt2").save_pretrained(tmp_path / "language-model")
    return tmp_path / "language-model"
