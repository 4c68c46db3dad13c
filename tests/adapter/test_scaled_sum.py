"""The layer's sum and its own backward pass, against autograd through the plain formula."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from peft_bidora.adapter.scaled_sum import scaled_sum

NAMES = ("base", "x", "lora_a", "lora_b", "scale", "bias")
SHAPES = ((2, 3, 5), (2, 3, 7), (4, 7), (5, 4), (5,), (5,))
SCALING = 1.7


def draw(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in zip(NAMES, SHAPES, strict=True)
    }


def plain(base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    added = torch.zeros(()) if bias is None else bias
    return scale * (base - added + SCALING * x @ lora_a.T @ lora_b.T) + added


def gradients(function, values: dict[str, Tensor | None], needed: tuple[str, ...]) -> list[Tensor]:
    inputs = {
        name: value if value is None else value.clone().requires_grad_(name in needed) for name, value in values.items()
    }
    output = function(**inputs)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    found = torch.autograd.grad((weights * output**2).sum(), [inputs[name] for name in needed])
    return [output.detach(), *found]


def summed(keep_output: bool = False, **inputs: Tensor | None) -> Tensor:
    return scaled_sum(**inputs, scaling=SCALING, keep_output=keep_output)


@pytest.mark.parametrize(
    "needed",
    [
        combination
        for count in product([0, 1], repeat=6)
        if any(count)
        for combination in [tuple(name for name, one in zip(NAMES, count, strict=True) if one)]
    ],
    ids="-".join,
)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("keep_output", [True, False])
def test_gradients_of_any_inputs_are_those_of_the_formula(needed, keep_output, with_bias):
    values = draw()
    if not with_bias:
        values["bias"], needed = None, tuple(name for name in needed if name != "bias")
    if not needed:
        return
    summing = partial(summed, keep_output)
    for found, expected in zip(gradients(summing, values, needed), gradients(plain, values, needed), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # float64 sums in another order


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("keep_output", [True, False])
def test_second_derivatives_are_those_of_finite_differences(keep_output, with_bias, contiguous):
    names = NAMES if with_bias else NAMES[:-1]
    inputs = [draw()[name].requires_grad_() for name in names]

    def of(base: Tensor, *others: Tensor) -> Tensor:
        tensors = (base if contiguous else base.transpose(0, 2).contiguous().transpose(0, 2), *others)
        return summed(keep_output, **{"bias": None, **dict(zip(names, tensors, strict=True))})

    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradgradcheck(of, inputs)


@pytest.mark.parametrize("keep_output", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
def test_one_of_output_and_base_is_kept_and_only_for_a_scale_that_is_trained(fixed, keep_output):
    values = draw()
    kept = []
    inputs = {name: value.requires_grad_(name != "scale" or not fixed) for name, value in values.items()}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        output = summed(keep_output, **inputs)
    assert (inputs["base"].data_ptr() in kept) is (not fixed and not keep_output)
    assert (output.data_ptr() in kept) is (not fixed and keep_output)


def test_precision_of_the_output_is_that_of_the_base():
    values = {name: value.requires_grad_() for name, value in draw(torch.float32).items()}
    values["base"] = values["base"].detach().bfloat16().requires_grad_()
    output = summed(**values)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert [value.grad.dtype for value in values.values()] == [torch.bfloat16] + [torch.float32] * 5
    expected = plain(**{name: value.detach().float() for name, value in values.items()})
    torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=5e-2)  # bfloat16 keeps 8 bits


def test_base_of_other_strides_is_read_right():
    values = draw()
    expected = plain(**values)
    values["base"] = values["base"].transpose(0, 1).contiguous().transpose(0, 1)
    assert not values["base"].is_contiguous()
    torch.testing.assert_close(summed(**values), expected, rtol=1e-12, atol=1e-12)
