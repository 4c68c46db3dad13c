"""The loaders of a Trainer on several processes, in place of those that accelerate would divide."""

from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from peft_bidora.errors import RecipeError
from peft_bidora.training import ranks
from peft_bidora.training.rank_rows import CollateOrBlank, EvaluationBatches, TrainingBatches
from peft_bidora.training.requirements import sized

STRATEGIES = ("random", "sequential")


def training_loader(trainer: Any) -> DataLoader[Any]:
    """Return the loader of a rank's training rows, in the order in which one process would read them.

    Raises:
        TypeError: the rows have no length.
        RecipeError: Trainer is told to draw them in another way than at random or in their order.
    """
    args, rows = trainer.args, sized("train_dataset", trainer.train_dataset)
    sampler: Any = SequentialSampler(rows)
    if args.train_sampling_strategy == "random":
        seed = ranks.on_first(torch.random.initial_seed) if args.data_seed is None else args.data_seed
        sampler = SeedableRandomSampler(rows, data_seed=seed)  # as accelerate makes of Trainer's sampler
    elif args.train_sampling_strategy != "sequential":
        raise RecipeError(
            f"train_sampling_strategy={args.train_sampling_strategy!r}: expected one of {', '.join(STRATEGIES)} on"
            f" {ranks.count()} processes. Leave it out, or train on one process."
        )
    batches = TrainingBatches(
        sampler, trainer._train_batch_size, ranks.rank(), ranks.count(), drop_last=args.dataloader_drop_last
    )
    return _loader(trainer, rows, batches, "Training")


def evaluation_loader(trainer: Any, rows: Any) -> DataLoader[Any]:
    """Return the loader of a rank's part of the rows of an evaluation."""
    size = trainer.args.per_device_eval_batch_size
    batches = EvaluationBatches(len(sized("eval_dataset", rows)), size, ranks.rank(), ranks.count())
    return _loader(trainer, rows, batches, "Evaluation")


def used_columns(trainer: Any, rows: Any, description: str) -> tuple[Any, Any]:
    """Return the rows and the collator, one of them without the columns that the model does not take."""
    if hasattr(rows, "remove_columns"):
        return trainer._remove_unused_columns(rows, description=description), trainer.data_collator
    return rows, trainer._get_collator_with_removed_columns(trainer.data_collator, description=description)


def _loader(trainer: Any, rows: Any, batches: BatchSampler, description: str) -> DataLoader[Any]:
    args = trainer.args
    rows, collate = used_columns(trainer, rows, description)
    workers = args.dataloader_num_workers
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=CollateOrBlank(rows, collate),
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
    )
    # One process, so that accelerate, which puts the batches on the device, does not divide them once more.
    prepared: DataLoader[Any] = prepare_data_loader(
        loader, trainer.accelerator.device, num_processes=1, process_index=0, put_on_device=True
    )
    return prepared
