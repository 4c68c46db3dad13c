"""Direction and magnitude: disjoint, complete, kept and put back."""

import pytest
import torch

from peft_bidora.adapter.parameters import require_gradient, restore, snapshot, split_levels
from peft_bidora.errors import AdapterError


def test_levels_are_disjoint_and_complete(make_adapted):
    model = make_adapted()
    levels = split_levels(model)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not levels.direction.keys() & levels.magnitude.keys()
    assert not {id(p) for p in levels.direction.values()} & {id(p) for p in levels.magnitude.values()}
    assert levels.direction.keys() | levels.magnitude.keys() == trainable.keys()
    assert all({**levels.direction, **levels.magnitude}[name] is trainable[name] for name in trainable)


def test_magnitudes_are_one_a_layer_and_the_head_is_of_the_direction(make_adapted):
    levels = split_levels(make_adapted())
    assert len(levels.magnitude) == 4
    assert all(parameter.shape == (16,) for parameter in levels.magnitude.values())
    assert all("lora_magnitude_vector" in name for name in levels.magnitude)
    assert any("classifier.modules_to_save" in name for name in levels.direction)
    assert sum("lora_A" in name for name in levels.direction) == sum("lora_B" in name for name in levels.direction) == 4


def test_frozen_magnitudes_are_still_the_upper_level(make_adapted):
    model = make_adapted()
    levels = split_levels(model)
    require_gradient(list(levels.magnitude.values()), False)
    again = split_levels(model)
    assert again.magnitude.keys() == levels.magnitude.keys()
    assert again.direction.keys() == levels.direction.keys()
    require_gradient(list(levels.magnitude.values()), True)
    assert all(parameter.requires_grad for parameter in levels.magnitude.values())


def test_lora_model_is_refused(make_adapted):
    with pytest.raises(AdapterError, match=r"got 0 magnitudes and \d+ other .* LoraConfig\(use_dora=True\)"):
        split_levels(make_adapted(use_dora=False))


def test_frozen_direction_is_refused(make_adapted):
    model = make_adapted()
    require_gradient(list(split_levels(model).direction.values()), False)
    with pytest.raises(AdapterError, match="got 0 magnitudes and 0 other trainable parameters"):
        split_levels(model)


def test_restore_puts_every_bit_back(make_adapted):
    parameters = split_levels(make_adapted()).direction
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(torch.logspace(-8, 8, parameter.numel()).reshape(parameter.shape))
    values = snapshot(parameters)
    kept = {name: value.clone() for name, value in values.items()}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(1.0)
    assert all(torch.equal(values[name], kept[name]) for name in kept)
    before = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    restore(parameters, values)
    assert all(torch.equal(parameters[name], kept[name]) for name in kept)
    assert {name: parameter.data_ptr() for name, parameter in parameters.items()} == before
    assert all(parameter.requires_grad for parameter in parameters.values())


def test_snapshot_of_other_parameters_is_refused_and_nothing_changed(make_adapted):
    levels = split_levels(make_adapted())
    before = snapshot(levels.direction)
    values = {name: torch.zeros_like(value) for name, value in before.items()}
    removed = next(iter(values))
    del values[removed]
    with pytest.raises(AdapterError, match=rf"these stand on one side only: {removed}\. Use the model"):
        restore(levels.direction, values)
    assert all(torch.equal(before[name], levels.direction[name]) for name in before)


def test_magnitudes_of_a_frozen_adapter_are_of_no_level(make_adapted):
    model = make_adapted()
    for name, parameter in model.named_parameters():
        if "query" in name and "lora_" in name:
            parameter.requires_grad_(False)
    levels = split_levels(model)
    assert len(levels.magnitude) == 2
    assert not any("query" in name for name in (*levels.magnitude, *levels.direction))
