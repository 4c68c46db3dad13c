"""Words and their subwords, by tokenizers of every kind."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
)

from peft_bidora.errors import ModelError, RecipeError
from peft_bidora.tasks.word_encoding import IGNORED, encode_words, tokenizer_for_words, words_collator

SENTENCE = ["the", "cat", "in", "London", "isn't", "here"]
TEXT = "the cat in London isn't here"
CORPUS = [f"{TEXT} and the cat", "London here"] * 20


def byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def word_pieces() -> Any:
    letters = sorted(set(TEXT))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "lon", "##don", *letters, *(f"##{c}" for c in letters)]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def pieces_of_sentences() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<pad>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def byte_level() -> Any:
    vocabulary, merges = byte_pairs()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def of_class(made: Any) -> Callable[[], Any]:
    return lambda: made(vocab=byte_pairs()[0], merges=byte_pairs()[1])


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "WordPiece": word_pieces,
    "Unigram": pieces_of_sentences,
    "byte-level": byte_level,
    "GPT-2": of_class(GPT2Tokenizer),
    "RoBERTa": of_class(RobertaTokenizer),
    "Qwen": of_class(Qwen2Tokenizer),
    "bytes, slow": ByT5Tokenizer,
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer_for_words(TOKENIZERS[request.param]())


def tokens_by_word(encoded: Any, tokenizer: Any, row: int = 0) -> list[list[str]]:
    ids, firsts = encoded.columns["input_ids"][row], encoded.firsts[row]
    special = set(tokenizer.all_special_ids)
    ends = [*firsts[1:], len(ids)]
    return [
        tokenizer.convert_ids_to_tokens([i for i in ids[first:end] if i not in special])
        for first, end in zip(firsts, ends, strict=True)
    ]


def test_each_word_begins_where_its_first_subword_stands(tokenizer: Any) -> None:
    found = tokens_by_word(encode_words([SENTENCE], tokenizer, 512), tokenizer)
    # WordPiece marks what goes on a word, Unigram and byte-level BPE what begins one.
    joined = ["".join(token.removeprefix("##") for token in tokens).strip(" ▁Ġ") for tokens in found]
    assert [word.lower() for word in joined] == [word.lower() for word in SENTENCE]


def test_words_have_the_tokens_that_they_have_in_a_text(tokenizer: Any) -> None:
    ids = encode_words([SENTENCE], tokenizer, 512).columns["input_ids"][0]
    in_text = tokenizer(TEXT)["input_ids"]
    special = len(tokenizer("")["input_ids"]) > 0
    # The first word of a text may lack the blank that it has among words.
    count = len(tokenizer(TEXT.removeprefix("the"), add_special_tokens=False)["input_ids"])
    assert ids[-count - special :] == in_text[-count - special :]


def test_rows_of_one_batch_are_encoded_as_alone(tokenizer: Any) -> None:
    rows = [SENTENCE, ["cat"], ["the", "cat"]]
    together = encode_words(rows, tokenizer, 512)
    alone = [encode_words([row], tokenizer, 512) for row in rows]
    assert together.firsts == [one.firsts[0] for one in alone]
    assert {name: list(values) for name, values in together.columns.items()} == {
        name: [one.columns[name][0] for one in alone] for name in together.columns
    }


def test_words_beyond_the_most_tokens_have_no_place(tokenizer: Any) -> None:
    whole = encode_words([SENTENCE], tokenizer, 512)
    special = tokenizer.num_special_tokens_to_add()
    limit = whole.firsts[0][3] + 1 + special - whole.firsts[0][0]  # the first subword of the fourth word still fits
    cut = encode_words([SENTENCE], tokenizer, limit)
    assert cut.firsts == [whole.firsts[0][:4]]
    assert len(cut.columns["input_ids"][0]) == limit
    assert encode_words([SENTENCE], tokenizer, limit - 1).firsts == [whole.firsts[0][:3]]
    assert cut.unknown == 0


def test_most_tokens_must_leave_room_for_a_word() -> None:
    with pytest.raises(RecipeError, match=r"data\.max_length=2: the tokenizer adds 2 special tokens.*Raise it"):
        encode_words([SENTENCE], word_pieces(), 2)


def test_left_truncation_is_turned_to_the_right() -> None:
    tokenizer = word_pieces()
    tokenizer.truncation_side = "left"
    assert encode_words([SENTENCE], tokenizer_for_words(tokenizer), 4).firsts == [[1, 2]]


@pytest.mark.parametrize("name", ["GPT-2", "RoBERTa", "byte-level"])
def test_prefix_space_is_set_and_saved(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    before = tokenizer([SENTENCE], is_split_into_words=True)["input_ids"][0]
    ids = encode_words([SENTENCE], tokenizer_for_words(tokenizer), 512).columns["input_ids"][0]
    assert ids != before
    tokenizer.save_pretrained(tmp_path)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    assert stock([SENTENCE], is_split_into_words=True)["input_ids"][0] == ids


def test_pieces_of_a_word_get_no_prefix_space() -> None:
    tokenizer = tokenizer_for_words(of_class(Qwen2Tokenizer)())
    assert tokens_by_word(encode_words([["cat", "isn't"]], tokenizer, 512), tokenizer)[1] == ["Ġisn", "'t"]


@pytest.mark.parametrize("place", range(3))
def test_word_that_leaves_nothing_is_unknown(place: int) -> None:
    tokenizer = word_pieces()
    words = ["the", "cat"]
    words.insert(place, "\u200b")
    encoded = encode_words([["cat"], words], tokenizer, 512)
    assert encoded.firsts[1] == [1, 2, 3]
    assert encoded.columns["input_ids"][1][1 + place] == tokenizer.unk_token_id
    assert encoded.unknown == 1


def test_word_that_leaves_nothing_beyond_the_cut_is_cut() -> None:
    encoded = encode_words([["the", "\u200b", "cat", "\u200b"]], word_pieces(), 4)
    assert encoded.firsts == [[1, 2]]
    assert encoded.unknown == 1


def test_word_that_leaves_nothing_needs_an_unknown_token() -> None:
    tokenizer = word_pieces()
    tokenizer.unk_token = None
    with pytest.raises(ModelError, match="leaves nothing of some words, and has no unknown token"):
        encode_words([["the", "\u200b"]], tokenizer, 512)


def test_tokenizer_that_cannot_tell_words_is_refused() -> None:
    with pytest.raises(ModelError, match=r"SimpleNamespace cannot say which word.*Name a model with a fast tokenizer"):
        tokenizer_for_words(SimpleNamespace(is_fast=False))


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_are_padded_on_the_side_of_the_tokens(side: str) -> None:
    tokenizer = word_pieces()
    tokenizer.padding_side = side
    rows = [{"input_ids": [2, 4, 3], "labels": [IGNORED, 1, IGNORED], "words": ["a"]}, {"input_ids": [2, 4, 5, 6, 3]}]
    rows[1] |= {"labels": [IGNORED, 0, 1, 0, IGNORED], "words": ["a", "b", "c"]}
    batch = words_collator(tokenizer)(rows)
    padded = [IGNORED] * 2
    row = [IGNORED, 1, IGNORED]
    assert batch["labels"][0].tolist() == (row + padded if side == "right" else padded + row)
    assert (batch["labels"][0] == 1).nonzero().item() == (batch["input_ids"][0] == 4).nonzero().item()
    assert batch["words"] == [["a"], ["a", "b", "c"]]
    assert "words" in rows[0]
