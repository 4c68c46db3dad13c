"""The mixin in front of a Trainer that is not ours."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, default_data_collator

from peft_bidora.adapter.layer import dora_layers
from peft_bidora.errors import ModelError, SplitError
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.bilevel_mixin import BilevelMixin


class PlainTrainer(BilevelMixin, Trainer):
    """Records at each step whether the row norms are differentiated through."""

    def training_step(self, *args, **kwargs):
        self.seen = [*getattr(self, "seen", []), norms_in_graph(self.model)]
        return super().training_step(*args, **kwargs)


def norms_in_graph(model) -> bool:
    states = {module.lora_variant[adapter].norm_in_graph for _, module, adapter in dora_layers(model)}
    assert len(states) == 1
    return states.pop()


def arguments(output, **changes) -> BiDoRAArguments:
    options = {"max_steps": 2, "lower_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no"}
    return BiDoRAArguments(
        str(output),
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{**options, **changes},
    )


def test_norm_is_in_the_graph_during_the_search_alone(make_adapted, make_rows, tmp_path) -> None:
    trainer = PlainTrainer(
        make_adapted(),
        arguments(tmp_path),
        default_data_collator,
        make_rows(8, seed=1),
        upper_dataset=make_rows(8, seed=2),
    )
    trainer.train()
    assert trainer.seen == [True, True]
    assert not norms_in_graph(trainer.model)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


def test_what_would_go_round_the_levels_is_refused(make_adapted, make_rows, tmp_path) -> None:
    def make(model=None, **changes) -> PlainTrainer:
        rows = {"train_dataset": make_rows(8), "upper_dataset": make_rows(8, seed=1)}
        return PlainTrainer(model, arguments(tmp_path), default_data_collator, **{**rows, **changes})

    adapted = make_adapted()
    with pytest.raises(TypeError, match="model_init: expected a model"):
        make(model_init=lambda: make_adapted())
    optimizer = SGD(adapted.parameters())
    for optimizers in ((optimizer, None), (None, LambdaLR(optimizer, float))):
        with pytest.raises(TypeError, match="optimizers: each level makes its own"):
            make(adapted, optimizers=optimizers)
    for name in ("train_dataset", "upper_dataset"):
        with pytest.raises(TypeError, match=f"{name}: expected rows that have a length"):
            make(adapted, **{name: Stream()})
    rows = make_rows(8)
    with pytest.raises(SplitError, match="upper_dataset is train_dataset"):
        make(adapted, train_dataset=rows, upper_dataset=rows)


def test_warm_up_in_steps_is_of_the_search_at_both_levels(make_adapted, make_rows, tmp_path) -> None:
    rates = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            rates.append(trainer._upper.scheduler.get_last_lr()[0])

    args = arguments(
        tmp_path, max_steps=8, lower_steps=2, warmup_steps=4, upper_lr_scheduler_type="constant_with_warmup",
        upper_learning_rate=1.0,
    )  # fmt: skip
    trainer = PlainTrainer(
        make_adapted(),
        args,
        default_data_collator,
        make_rows(8),
        upper_dataset=make_rows(8, seed=2),
        callbacks=[Look()],
    )
    trainer.train()
    assert rates == [0, 0.5, 0.5, 1, 1, 1, 1, 1]  # of the next upper step, which every second step is followed by


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("hypergradient", ["finite-difference", "exact"])
def test_search_under_gradient_checkpointing_is_the_same_or_refused(
    make_adapted, make_rows, tmp_path, kwargs, hypergradient
) -> None:
    found = []
    for checkpointing in (False, True):
        args = arguments(
            tmp_path,
            hypergradient=hypergradient,
            activation_checkpointing=checkpointing,
            activation_checkpointing_kwargs=kwargs if checkpointing else None,
        )
        rows = {"train_dataset": make_rows(8, seed=1), "upper_dataset": make_rows(8, seed=2)}
        trainer = PlainTrainer(make_adapted(dropout=0.1), args, default_data_collator, **rows)
        if checkpointing and kwargs == {"use_reentrant": True}:
            with pytest.raises(ModelError, match="use_reentrant=True hides the magnitudes"):
                trainer.train()
            return
        trainer.train()
        found.append([value.detach() for value in trainer.levels.magnitude.values()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-6, atol=0)  # float32, computed twice
