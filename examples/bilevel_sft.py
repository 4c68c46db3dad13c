"""Search magnitudes inside TRL's SFTTrainer: BilevelMixin in front of it, on tiny data with a tiny random GPT-2.

    pip install 'peft-bidora[trl]'
    python examples/bilevel_sft.py --output runs/bilevel-sft

SFTTrainer tokenises rows with prompt and completion (or messages) and computes its own loss; the mixin adds the upper
level. What is saved is the adapter at the end of the search. SFTTrainer's own figures (`num_tokens`, `entropy`,
`mean_token_accuracy`) are of every pass, those of the upper level among them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from peft_bidora import AdapterOptions, BiDoRAArguments, BilevelMixin, attach_adapter, save_adapter

COLOURS, THINGS = ("red", "blue", "green", "grey"), ("fox", "cat", "door", "boat", "hat")


@dataclass
class BilevelSFTConfig(BiDoRAArguments, SFTConfig):
    """The options of SFTTrainer and those of the search; where both have a default, the latter's holds."""


class BilevelSFTTrainer(BilevelMixin, SFTTrainer):
    """SFTTrainer with an upper level, whose rows it prepares as it prepares its own."""

    def __init__(self, *args: Any, upper_dataset: Dataset, **kwargs: Any) -> None:
        super().__init__(*args, upper_dataset=upper_dataset, **kwargs)
        self.upper_dataset = self._prepare_dataset(
            upper_dataset, self.processing_class, self.args, self.args.packing, None, "upper"
        )


def main(arguments: Sequence[str] | None = None) -> BilevelSFTTrainer:
    """Run the search, save the adapter and return the trainer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/bilevel-sft")
    parser.add_argument("--steps", type=int, default=20, help="lower steps")
    options = parser.parse_args(arguments)
    set_seed(0)
    tokenizer = make_tokenizer()
    model = attach_adapter(make_model(tokenizer), AdapterOptions(rank=4), use_dora=True, task_type="CAUSAL_LM")
    rows = Dataset.from_list(
        [{"prompt": f"paint the {thing} {colour}\n", "completion": f"the {colour} {thing}"} for thing in THINGS
         for colour in COLOURS]
    ).train_test_split(0.3, seed=0)  # fmt: skip
    args = BilevelSFTConfig(
        output_dir=options.output,
        max_steps=options.steps,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        upper_learning_rate=2e-2,
        lower_steps=2,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    trainer = BilevelSFTTrainer(
        model, args, train_dataset=rows["train"], upper_dataset=rows["test"], processing_class=tokenizer
    )
    trainer.train()
    save_adapter(trainer.model, Path(args.output_dir))
    print(f"the adapter is in {args.output_dir}")
    return trainer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes."""
    alphabet = ["<end>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


def make_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Return a GPT-2 of two layers with random weights."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


if __name__ == "__main__":
    main()
