"""A search step on every family of models that has its own names and layers."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES, attach, make_batch, make_model
from transformers import default_data_collator

from peft_bidora.adapter.parameters import split_levels
from peft_bidora.bilevel.hypergradient import UpperGradient
from peft_bidora.bilevel.step import upper_step
from peft_bidora.bilevel.tensors import add_scaled, norm
from peft_bidora.training import bilevel_mixin
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.trainer import BiDoRATrainer


def search(
    family: str, target_modules: str | None, folder: Path, **options: object
) -> tuple[BiDoRATrainer, dict[str, torch.Tensor]]:
    """Run one step of each level on two rows each, under dropout; return the state from before it too."""
    adapted = attach(make_model(family), target_modules, dropout=0.1)
    adapted.set_attn_implementation("eager")
    for name, parameter in split_levels(adapted).direction.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # a B of zero keeps A where it is
    args = BiDoRAArguments(
        str(folder), max_steps=1, lower_steps=1, learning_rate=1e-2, per_device_train_batch_size=2,
        retrain_from="search", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False, **options,
    )  # fmt: skip
    batch = {**make_batch(family), "labels": torch.tensor([0, 1, 2, 1])}
    rows = [{name: values[index] for name, values in batch.items()} for index in range(4)]
    trainer = BiDoRATrainer(
        adapted, args, train_dataset=rows[:2], upper_dataset=rows[2:], data_collator=default_data_collator
    )
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    trainer._search(None, folder / "search", {})
    return trainer, before


@pytest.mark.parametrize("target_modules", [None, "all-linear"], ids=["query-value", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_search_step_moves_every_part_of_both_levels_and_no_frozen_bit(family, target_modules, tmp_path):
    trainer, before = search(family, target_modules, tmp_path)
    after = trainer.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {*trainer.levels.direction, *trainer.levels.magnitude}


@pytest.mark.parametrize("family", FAMILIES)
def test_finite_difference_of_a_search_step_is_the_exact_product(family, tmp_path, monkeypatch):
    found: list[UpperGradient] = []

    def step(*args, **kwargs):
        found.append(upper_step(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(bilevel_mixin, "upper_step", step)
    # T5 cuts at zero: a step ten times as long takes this tiny one over an edge, where the derivative jumps.
    options = {"finite_difference_radius": 1e-3}
    for hypergradient in ("finite-difference", "exact"):
        search(family, None, tmp_path / hypergradient, hypergradient=hypergradient, **options)
    difference, exact = (gradient.implicit for gradient in found)
    # 1e-3: float32, a difference over 1e-3.
    assert norm(add_scaled(difference, exact, -1.0)) <= 1e-3 * norm(exact)
