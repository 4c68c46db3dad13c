"""ΔM and ΔD of weights whose rows were turned and stretched by known amounts."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_bidora.study.decomposition import Change, decompose, decompose_adapter, decompose_full, slope_and_correlation


def test_rows_that_are_stretched_do_not_turn() -> None:
    base = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
    change = decompose("layer", base * torch.tensor([[1.5], [0.5]]), base)

    assert change.magnitude == pytest.approx((2.5 + 1.0) / 2, rel=1e-12)
    assert change.relative_magnitude == pytest.approx(1.75 / 3.5, rel=1e-12)
    assert change.direction == pytest.approx(0, abs=1e-15)


def test_rows_that_are_turned_keep_their_length() -> None:
    angles = torch.tensor([0.1, 1.2], dtype=torch.float64)
    base = torch.tensor([[2.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    weight = base[:, :1] * torch.stack([angles.cos(), angles.sin()], dim=1)
    change = decompose("layer", weight, base)

    assert change.magnitude == pytest.approx(0, abs=1e-14)
    assert change.direction == pytest.approx((2 - math.cos(0.1) - math.cos(1.2)) / 2, rel=1e-12)


def test_it_is_rows_that_count_and_not_columns() -> None:
    base = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    doubled_row, doubled_column = base * torch.tensor([[2.0], [1.0]]), base * torch.tensor([[2.0, 1.0]])

    assert decompose("layer", doubled_row, base).direction == pytest.approx(0, abs=1e-7)
    assert decompose("layer", doubled_column, base).direction > 1e-3


def test_row_of_zeros_turns_nowhere() -> None:
    base = torch.zeros(2, 3)
    assert decompose("layer", base, base) == Change("layer", 0.0, 0.0, 0.0)


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapter_is_decomposed_as_the_weights_that_it_merges_to(use_dora: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    base = {name: module.weight.detach().clone() for name, module in model.named_modules() if hasattr(module, "weight")}
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0", "2"], use_dora=use_dora)
    peft_model = get_peft_model(model, config)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.rand_like(parameter))
    found = decompose_adapter(peft_model)
    expected = decompose_full(peft_model.merge_and_unload(), base, ["0", "2"])

    assert [change.layer.rsplit(".", 1)[-1] for change in found] == ["0", "2"]
    for own, merged in zip(found, expected, strict=True):
        assert own.magnitude == pytest.approx(merged.magnitude, rel=1e-5)  # float32
        assert own.direction == pytest.approx(merged.direction, rel=1e-4)
    assert found[0].direction > 1e-3


def test_slope_is_that_of_the_line_through_the_points() -> None:
    changes = [Change(str(x), 3.0 - 2.0 * x, 0.0, x) for x in (0.1, 0.4, 0.5)]
    assert slope_and_correlation(changes) == pytest.approx((-2.0, -1.0), rel=1e-12)
    assert all(math.isnan(value) for value in slope_and_correlation(changes[:1]))
