"""From words to subwords: token ids with, for each word, the place of its first subword."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import pre_tokenizers

from peft_bidora.data.examples import Examples
from peft_bidora.errors import ModelError, RecipeError
from peft_bidora.tasks.encoding import IGNORED
from peft_bidora.tasks.task import Columns

WORDS_COLUMN = "words"  # of the rows, beside what the model reads
PROBE = ("one", "don't", "x-2")


@dataclass(frozen=True)
class EncodedWords:
    """What a model reads of sentences of words.

    Args:
        columns: token ids and what else the model takes, unpadded.
        firsts: (rows,), of each word that was not cut the place of its first subword, ascending.
        unknown: words that the tokenizer leaves nothing of, such as a lone variation selector; its unknown token
            stands for each.
    """

    columns: Columns
    firsts: list[list[int]]
    unknown: int


def tokenizer_for_words(tokenizer: Any) -> Any:
    """Return the tokenizer made ready for words, in place: cut at the right, byte-level ones with `add_prefix_space`.

    Byte-level tokenizers (GPT-2, RoBERTa, ModernBERT) know the begin of a word by the blank before it, which words
    lack. The setting is saved with the tokenizer, so that stock transformers reads words the same.

    Raises:
        ModelError: it is neither a fast tokenizer nor one that builds its input from token ids.
    """
    if not tokenizer.is_fast and not hasattr(tokenizer, "prepare_for_model"):
        raise ModelError(
            f"{type(tokenizer).__name__} cannot say which word a token belongs to, which token-classification needs."
            " Name a model with a fast tokenizer (a tokenizer.json)."
        )
    tokenizer.truncation_side = "right"
    if tokenizer.is_fast and not _reads_as_in_text(tokenizer, ""):
        splitter = tokenizer.backend_tokenizer.pre_tokenizer
        if isinstance(splitter, pre_tokenizers.ByteLevel):
            splitter.add_prefix_space = tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True
    return tokenizer


def encode_words(sentences: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> EncodedWords:
    """Return the token ids of sentences, and where each word begins.

    Args:
        sentences: (rows,), of words.
        tokenizer: what `tokenizer_for_words` returned.
        max_length: the most tokens of a row, special ones included; words beyond are cut.

    Raises:
        RecipeError: max_length leaves no room for a word.
        ModelError: the tokenizer leaves nothing of a word and has no unknown token.
    """
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise RecipeError(
            f"data.max_length={max_length}: the tokenizer adds {special} special tokens, which leaves no room for a"
            " word. Raise it."
        )
    # What splits text into pieces itself (Qwen, Llama 3) or has no pieces (ByT5) needs a blank before each word.
    bare = _reads_as_in_text(tokenizer, "") or not _reads_as_in_text(tokenizer, " ")
    marked = [[word if bare else f" {word}" for word in words] for words in sentences]
    return (_encode_fast if tokenizer.is_fast else _encode_slow)(marked, tokenizer, max_length)


def words_collator(tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
    """Return the function that pads encoded rows and their labels into a batch; a column of words stays lists."""
    from transformers import DataCollatorForTokenClassification

    pad = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)

    def collate(rows: list[dict[str, Any]]) -> Any:
        batch = pad([{name: value for name, value in row.items() if name != WORDS_COLUMN} for row in rows])
        if WORDS_COLUMN in rows[0]:
            batch[WORDS_COLUMN] = [row[WORDS_COLUMN] for row in rows]
        return batch

    return collate


def words_of(examples: Examples) -> list[tuple[str, ...]]:
    """Return the words of each row."""
    return [texts[0] for texts in examples.texts]


def _reads_as_in_text(tokenizer: Any, mark: str) -> bool:
    """Whether words give the tokens that they give within a text; the first of a text may differ."""
    words = tokenizer([mark + word for word in PROBE[1:]], is_split_into_words=True, add_special_tokens=False)
    text = tokenizer(" ".join(PROBE), add_special_tokens=False)
    return bool(text["input_ids"][-len(words["input_ids"]) :] == words["input_ids"])


def _encode_fast(sentences: list[list[str]], tokenizer: Any, max_length: int) -> EncodedWords:
    encoded, firsts = _fast_pass(sentences, tokenizer, max_length)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    triples = zip(sentences, firsts, lengths, strict=True)
    lost = [_lost(words, found, whole=length < max_length) for words, found, length in triples]
    if any(lost):
        stand_in = _unknown_token(tokenizer)
        sentences = [
            [stand_in if position in missing else word for position, word in enumerate(words)]
            for words, missing in zip(sentences, lost, strict=True)
        ]
        encoded, firsts = _fast_pass(sentences, tokenizer, max_length)
    return EncodedWords(dict(encoded), [list(found.values()) for found in firsts], sum(map(len, lost)))


def _fast_pass(sentences: list[list[str]], tokenizer: Any, max_length: int) -> tuple[Any, list[dict[int, int]]]:
    """Return the encoding, and of each row the place of the first subword by word."""
    encoded = tokenizer(sentences, is_split_into_words=True, truncation=True, max_length=max_length)
    firsts: list[dict[int, int]] = []
    for row in range(len(sentences)):
        found: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids(row)):
            if word is not None:
                found.setdefault(word, place)
        firsts.append(found)
    return encoded, firsts


def _lost(words: list[str], found: dict[int, int], *, whole: bool) -> set[int]:
    """The words without a token; in a row that was cut, those before the last one that has some."""
    read = len(words) if whole else max(found, default=-1) + 1
    return set(range(read)) - found.keys()


def _encode_slow(sentences: list[list[str]], tokenizer: Any, max_length: int) -> EncodedWords:
    room = max_length - tokenizer.num_special_tokens_to_add()
    leading = tokenizer.build_inputs_with_special_tokens([-1]).index(-1)
    known: dict[str, list[int]] = {}
    rows, firsts, unknown = [], [], 0
    for words in sentences:
        ids: list[int] = []
        places = []
        for word in words:
            if word not in known:
                known[word] = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))
            if len(ids) < room:
                places.append(leading + len(ids))
                unknown += not known[word]
                ids += known[word] or [tokenizer.convert_tokens_to_ids(_unknown_token(tokenizer))]
        rows.append(tokenizer.prepare_for_model(ids, truncation=True, max_length=max_length))
        firsts.append(places)
    return EncodedWords({name: [row[name] for row in rows] for name in rows[0]}, firsts, unknown)


def _unknown_token(tokenizer: Any) -> str:
    if tokenizer.unk_token is None:
        raise ModelError(
            f"{type(tokenizer).__name__} leaves nothing of some words, and has no unknown token to stand for them."
            " Remove words without letters, or name another model."
        )
    return str(tokenizer.unk_token)
