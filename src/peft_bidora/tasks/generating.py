"""Generate text for a batch of prompts, and measure how probable the references are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peft_bidora.bilevel.randomness import preserved_random_state
from peft_bidora.tasks.completions import end_of_text
from peft_bidora.tasks.encoding import IGNORED


@dataclass(frozen=True)
class Generated:
    """What a model wrote for a row.

    Args:
        text: without prompt and special tokens.
        ended: whether the model ended it; False where max_new_tokens did.
        nats: −log p of the first reference, summed over its tokens; None without references.
        tokens: of the first reference with its end; 0 without references.
    """

    text: str
    ended: bool
    nats: float | None
    tokens: int


def generate(
    model: Any, inputs: Mapping[str, Any], tokenizer: Any, *, causal: bool, settings: Mapping[str, Any], seed: int
) -> list[Generated]:
    """Return what the model writes for each row of a batch, by the same seed the same.

    Args:
        model: in evaluation mode.
        inputs: a collated batch on the model's device; with `labels` the references are scored too.
        tokenizer: of the model.
        causal: whether the prompt and its completion stand in one row; False for an encoder-decoder.
        settings: keyword arguments of transformers' GenerationConfig; what they leave open is as the model has it.
        seed: of the draws, which also depend on the prompts of the batch.
    """
    from transformers import GenerationConfig

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if causal:
        ids, mask = _left_padded_prompts(inputs, tokenizer.pad_token_id)
    ends = _ends(model, tokenizer)
    config = GenerationConfig(**written_settings(model, tokenizer, settings))
    with torch.no_grad(), _seeded(seed, ids) if config.do_sample else nullcontext():
        written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    if causal:
        written = written[:, ids.shape[1] :]
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    ended = torch.isin(written, torch.tensor(ends, device=written.device))
    if not causal:
        ended = ended[:, 1:]  # some decoders start with the end-of-text token
    scored = reference_nats(model, inputs, causal=causal) if "labels" in inputs else [(None, 0)] * len(texts)
    return [
        Generated(text.strip(), bool(row.any()), nats, tokens)
        for text, row, (nats, tokens) in zip(texts, ended, scored, strict=True)
    ]


def written_settings(model: Any, tokenizer: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of GenerationConfig by which a run writes; see `generate`."""
    return {**settings, "eos_token_id": _ends(model, tokenizer), "pad_token_id": tokenizer.pad_token_id}


def reference_nats(model: Any, inputs: Mapping[str, Any], *, causal: bool) -> list[tuple[float, int]]:
    """Return of each row −Σ log p(token) over its labels, and their number.

    Args:
        model: in evaluation mode.
        inputs: a collated batch with `labels`, (rows, tokens), on the model's device.
        causal: whether a position predicts the label of the next one; False where it predicts its own.
    """
    labels = inputs["labels"]
    # An encoder-decoder makes the decoder's input of the labels.
    passed = {name: value for name, value in inputs.items() if name != "labels" or not causal}
    with torch.no_grad():
        logits = model(**passed)["logits"]
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    scored = []
    for row, targets in zip(logits, labels, strict=True):  # a copy in float32 of one row at a time
        known = targets != IGNORED
        scored.append((cross_entropy(row[known].float(), targets[known], reduction="sum").item(), int(known.sum())))
    return scored


def _left_padded_prompts(inputs: Mapping[str, Any], padding: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask of the prompts, which a causal model goes on from at their right end."""
    known = inputs["attention_mask"].bool()
    if "labels" in inputs:
        known &= inputs["labels"] == IGNORED
    prompts = [row[kept] for row, kept in zip(inputs["input_ids"], known, strict=True)]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), padding, device=known.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a text: the tokenizer's, and those that the model came with."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return sorted({end_of_text(tokenizer), *(own if isinstance(own, list) else [] if own is None else [own])})


@contextmanager
def _seeded(seed: int, ids: Tensor) -> Iterator[None]:
    """Seed the generators by the batch, so that neither the order of batches nor other draws change what is drawn."""
    with preserved_random_state():
        torch.manual_seed((seed * 1_000_003 + crc32(ids.cpu().numpy().tobytes())) % 2**63)
        yield
