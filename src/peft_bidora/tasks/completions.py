"""From prompts and completions to token ids and labels, and from rows of them to batches."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft_bidora.data.examples import Examples
from peft_bidora.errors import ModelError
from peft_bidora.tasks.chat import render, rendered_answer
from peft_bidora.tasks.encoding import IGNORED
from peft_bidora.tasks.task import Columns

NEWLINE = "\n"


@dataclass(frozen=True)
class Pieces:
    """The token ids of a row, uncut.

    Args:
        start: what the tokenizer puts before every text.
        prompt: the prompt with its separator.
        completion: the first reference with the end-of-text token; empty without references.
    """

    start: list[int]
    prompt: list[int]
    completion: list[int]


def learned_separator(train: Examples) -> str:
    """Return what stands between a prompt and its completion: a newline, or nothing where the rows have white space.

    White space counts if every prompt ends with some or every first reference begins with some.
    """
    ends = [isinstance(texts[-1], str) and texts[-1][-1].isspace() for texts in train.texts]
    begins = [references[0][0].isspace() for references in train.required_labels()]
    return "" if all(ends) or all(begins) else NEWLINE


def causal_pieces(examples: Examples, tokenizer: Any, separator: str) -> list[Pieces]:
    """Return the token ids of prompt and completion of each row, each tokenised alone so that their border is fixed.

    Args:
        examples: (rows,), with or without references.
        tokenizer: of the model.
        separator: between prompt and completion; the end-of-text token stands for one that the tokenizer drops.

    Raises:
        ModelError: the tokenizer has no end-of-text token.
    """
    end = end_of_text(tokenizer)
    start = _start(tokenizer)
    mark = _mark(tokenizer, separator)
    prompts = _ids(tokenizer, [_prompt_text(tokenizer, texts, separator) for texts in examples.texts])
    completions = _ids(tokenizer, completion_texts(examples, tokenizer))
    pieces = []
    for row, texts in enumerate(examples.texts):
        if is_chat(texts):  # its template writes every special token
            before, prompt = [], prompts[row]
        else:
            before, prompt = start, prompts[row] + mark
        completion = [*completions[row], end] if completions else []
        # A token before the completion is needed to predict its first one.
        pieces.append(Pieces(before, prompt or ([] if before else [end]), completion))
    return pieces


def fit_causal(pieces: Pieces, max_length: int, reserved: int) -> tuple[list[int], list[int]]:
    """Return prompt and completion cut to `max_length` tokens in all, the prompt first and on its left.

    Args:
        pieces: of a row.
        max_length: the most tokens of prompt and completion.
        reserved: the least that a prompt leaves free, since as many are generated.
    """
    completion = pieces.completion[: max_length - 1]
    room = max_length - max(len(completion), min(reserved, max_length - 1))
    start = pieces.start[:room]
    cut = max(0, len(pieces.prompt) - (room - len(start)))
    return start + pieces.prompt[cut:], completion


def encode_causal(examples: Examples, tokenizer: Any, separator: str, max_length: int, reserved: int) -> Columns:
    """Return `input_ids`, `attention_mask` and, with references, `labels`: the completion's ids, the prompt masked."""
    rows = [fit_causal(p, max_length, reserved) for p in causal_pieces(examples, tokenizer, separator)]
    columns: Columns = {
        "input_ids": [prompt + completion for prompt, completion in rows],
        "attention_mask": [[1] * (len(prompt) + len(completion)) for prompt, completion in rows],
    }
    if examples.labels is not None:
        columns["labels"] = [[IGNORED] * len(prompt) + completion for prompt, completion in rows]
    return columns


def encode_pairs(examples: Examples, tokenizer: Any, max_length: int) -> Columns:
    """Return the columns of an encoder-decoder: the prompt as input, the completion with its end as `labels`.

    Each is cut to `max_length` tokens by the tokenizer.

    Raises:
        ModelError: the tokenizer has no end-of-text token.
    """
    end = end_of_text(tokenizer)
    texts = [_prompt_text(tokenizer, texts, "") for texts in examples.texts]
    encoded = tokenizer(texts, truncation=True, max_length=max_length)
    columns: Columns = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    if examples.labels is not None:
        targets = completion_texts(examples, tokenizer)
        labels = tokenizer(text_target=targets, truncation=True, max_length=max_length)["input_ids"]
        # The last but one where the tokenizer puts a language code behind it.
        columns["labels"] = [ids if end in ids[-2:] else [*ids[: max_length - 1], end] for ids in labels]
    return columns


def completion_texts(examples: Examples, tokenizer: Any) -> list[str]:
    """Return the first reference of each row as the model writes it; none where the rows have no references."""
    return [
        rendered_answer(tokenizer, texts[0], references[0]) if is_chat(texts) else references[0]
        for texts, references in zip(examples.texts, examples.labels or [()] * len(examples), strict=True)
        if references
    ]


def prompt_reading(texts: tuple[Any, ...], tokenizer: Any, separator: str, encoder_decoder: bool) -> str:
    """Return the Python that makes `inputs` of a prompt as a model was trained on it, by the stock tokenizer.

    Args:
        texts: of some row, which say whether a prompt is messages, one text or two.
        tokenizer: of the model.
        separator: between prompt and completion of a causal model.
        encoder_decoder: whether the prompt is read by an encoder.
    """
    if is_chat(texts):
        prompt = (
            'tokenizer.apply_chat_template([{"role": "user", "content": "..."}], add_generation_prompt=True,'
            " tokenize=False)"
        )
        plain = "" if encoder_decoder else ", add_special_tokens=False"  # the template writes them
        return f'inputs = tokenizer({prompt}{plain}, return_tensors="pt")'
    prompt, plain = NEWLINE.join(["..."] * len(texts)) + separator, ""
    if not encoder_decoder:
        prompt += tokenizer.decode(_mark(tokenizer, separator))
        start = _start(tokenizer)
        if tokenizer("a")["input_ids"] != start + _ids(tokenizer, ["a"])[0]:  # it would end the prompt too
            prompt, plain = tokenizer.decode(start) + prompt, ", add_special_tokens=False"
    return f'inputs = tokenizer({json.dumps(prompt, ensure_ascii=False)}{plain}, return_tensors="pt")'


def pad_right(tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return the function that pads encoded rows on the right, where no position shifts, to the longest of a batch."""
    import torch

    padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.as_tensor(row[name]) for row in rows], batch_first=True, padding_value=padding[name]
            )
            for name in padding
            if name in rows[0]
        }

    return collate


def is_chat(texts: tuple[Any, ...]) -> bool:
    """Return whether the prompt of a row is messages."""
    return isinstance(texts[0], tuple)


def end_of_text(tokenizer: Any) -> int:
    """Return the id of the end-of-text token, which ends what is generated.

    Raises:
        ModelError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "The tokenizer has no end-of-text token, and generation would never stop. Save it again with an eos_token."
        )
    end: int = tokenizer.eos_token_id
    return end


def _prompt_text(tokenizer: Any, texts: tuple[Any, ...], separator: str) -> str:
    return render(tokenizer, texts[0]) if is_chat(texts) else NEWLINE.join(texts) + separator


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return ids


def _start(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text."""
    (plain,), marked = _ids(tokenizer, ["a"]), tokenizer("a")["input_ids"]
    return next((marked[:at] for at in range(len(marked)) if plain and marked[at : at + len(plain)] == plain), [])


def _mark(tokenizer: Any, separator: str) -> list[int]:
    """Return what stands for a separator that the tokenizer drops: the end-of-text token; else nothing."""
    alone, separated = _ids(tokenizer, ["a", "a" + separator])
    return [end_of_text(tokenizer)] if separator and alone == separated else []
