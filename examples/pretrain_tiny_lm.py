"""Train a small causal language model from scratch on the texts of a JSON Lines file; minutes on two cores.

    python examples/pretrain_tiny_lm.py --data train.jsonl --output models/tiny --steps 600

The folder that it writes is usable as `model:` of a recipe with `task: text-generation`. Every text (a string, or a
string of a list) of every column is a document of its own, so that the model learns the language of prompts and of
completions, but not which completion belongs to which prompt: that is left to the adapter.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

END, PADDING = "<|endoftext|>", "<|pad|>"


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, save, and return the mean nats a token of the last logging interval."""
    options = parse(arguments)
    set_seed(options.seed)
    texts = list(read_texts(options.data, options.columns))
    tokenizer = train_tokenizer(texts, options.vocabulary)
    blocks = pack(tokenizer, texts, options.length)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=options.positions,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.heads,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPT2LMHeadModel(config)
    print(
        f"{len(texts):,} texts, {len(blocks):,} blocks of {options.length} tokens,"
        f" {model.num_parameters():,} parameters",
        flush=True,
    )
    accelerated = torch.accelerator.is_available()
    args = TrainingArguments(
        output_dir=str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.1,
        bf16=accelerated,
        seed=options.seed,
        logging_steps=max(1, options.steps // 20),
        save_strategy="no",
        report_to=[],
        use_cpu=not accelerated,
        dataloader_pin_memory=accelerated,
    )
    trainer = Trainer(model, args, train_dataset=blocks, data_collator=default_data_collator)
    trainer.train()
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    loss = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
    print(f"{loss:.3f} nats a token at the end; model and tokenizer are in {options.output}")
    return float(loss)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, whose defaults fit two cores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON Lines file")
    parser.add_argument("--output", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--columns", nargs="+", help="whose texts to learn; all of them by default")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192, help="of the hidden states; a multiple of --heads")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=1000, help="the most tokens")
    parser.add_argument("--positions", type=int, default=256, help="the most tokens of a text of the model")
    parser.add_argument("--length", type=int, default=64, help="tokens of a training block, at most --positions")
    parser.add_argument("--batch-size", type=int, default=16, help="blocks a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.width % options.heads:
        parser.error(f"--width {options.width} is no multiple of --heads {options.heads}")
    if options.length > options.positions:
        parser.error(f"--length {options.length} is more than --positions {options.positions}")
    return options


def read_texts(path: Path, columns: Sequence[str] | None) -> Iterator[str]:
    """Yield the texts of the columns of a JSON Lines file, row by row."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                row = json.loads(line)
                for column in columns or row:
                    yield from _texts_of(row.get(column))


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer: it knows every character, and loses none."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PADDING)


def pack(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> list[dict[str, Any]]:
    """Return the texts as blocks of `length` tokens, end to end with the end-of-text token between; the rest is left.

    The texts stand in random order: neighbours of a file would tell which completion belongs to which prompt.
    """
    order = torch.randperm(len(texts)).tolist()
    encoded = tokenizer([texts[index] for index in order])["input_ids"]
    stream = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
    blocks = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
    if not blocks:
        raise SystemExit(f"error: the texts have {len(stream)} tokens; a block needs {length}. Lower --length.")
    return [{"input_ids": block, "labels": block} for block in blocks]


def _texts_of(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


if __name__ == "__main__":
    main()
