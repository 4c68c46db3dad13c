"""Base weights held in bfloat16: under autocast all is computed as over the same numbers in float32, to the bit."""

from typing import Any

import pytest
import torch
from families import FAMILIES, attach, make_batch, make_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from peft_bidora.adapter.held import hold_in_bfloat16, round_to_bfloat16
from peft_bidora.adapter.layer import base_row_norm_squared, dora_layers, norm_in_graph
from peft_bidora.adapter.regularizer import OrthogonalityRegularizer
from peft_bidora.adapter.weight import rows_by_weight

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


def rounded(family: str) -> nn.Module:
    """A model in float32 whose numbers bfloat16 has too."""
    return make_model(family).bfloat16().float()


def pair(family: str, dropout: float = 0.0) -> tuple[Any, Any]:
    """The same adapted model, its weights in float32 and in bfloat16, the adapter not at its start."""
    whole, coarse = (attach(rounded(family), "all-linear", dropout=dropout) for _ in range(2))
    hold_in_bfloat16(coarse)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for (name, one), other in zip(whole.named_parameters(), coarse.parameters(), strict=True):
            if one.requires_grad:
                one += (0.01 if "magnitude" in name else 0.1) * torch.randn(one.shape, generator=generator)
                other.copy_(one)
    return whole, coarse


def computed(family: str, model: Any) -> dict[str, Tensor]:
    batch = {**make_batch(family), "labels": torch.tensor([0, 1, 2, 1])}
    torch.manual_seed(2)
    with norm_in_graph(model), torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(**batch).loss
        (loss + 0.0).backward()
    regularity = OrthogonalityRegularizer(model).add_gradient(1.0, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model.eval()(**batch).logits
    gradients = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    assert all(each.grad is None for each in model.parameters() if not each.requires_grad)
    return {"loss": loss.detach(), "logits": logits, "regularity": regularity, **gradients}


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_and_gradients_are_those_over_the_same_numbers_in_float32(family: str) -> None:
    whole, coarse = pair(family, dropout=0.1)
    expected, found = computed(family, whole), computed(family, coarse)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_start_is_the_base_model_and_its_magnitudes_are_the_norms_of_the_rows(family: str, held: bool) -> None:
    model, batch = make_model(family), make_batch(family)
    if held:
        round_to_bfloat16(model)
    else:  # as somebody else loads it: PEFT rounds the norms to 16 bits
        hold_in_bfloat16(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch).logits
        adapted = attach(model, "all-linear").eval()
        if held:
            hold_in_bfloat16(adapted)
        found = adapted(**batch).logits
    assert torch.equal(found, expected)
    for _, module, adapter in dora_layers(adapted):
        magnitude = module.lora_magnitude_vector[adapter].weight
        assert magnitude.dtype == torch.float32
        # PEFT's own, over what stays in float32, is summed in another order.
        torch.testing.assert_close(magnitude.detach(), base_row_norm_squared(module).sqrt(), rtol=1e-6, atol=0)


def test_linear_layers_of_the_base_model_are_in_bfloat16_and_all_else_is_in_float32() -> None:
    model = make_model("bert")
    hold_in_bfloat16(model)
    coarse = {name for name, each in model.named_parameters() if each.dtype == torch.bfloat16}
    layers = [name for name, each in model.named_modules() if isinstance(each, nn.Linear) and name != "classifier"]
    assert coarse == {f"{name}.weight" for name in layers}
    assert len(coarse) == 2 * 6 + 1
    encoder_decoder = make_model("t5")
    hold_in_bfloat16(encoder_decoder)
    kept = {name.split(".")[-2] for name, each in encoder_decoder.named_parameters() if each.dtype == torch.float32}
    held_before = {name for name, each in encoder_decoder.named_parameters() if each.dtype == torch.bfloat16}
    adapted = attach(make_model("t5"), "all-linear")
    hold_in_bfloat16(adapted)  # after it the same, none of the adapter
    names = {name for name, each in adapted.named_parameters() if each.dtype == torch.bfloat16}
    assert {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in names} == held_before
    assert "wo" in kept  # which transformers keeps there
    assert not kept & {"q", "k", "v", "o", "wi"}
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16, torch.float32}


def test_weight_that_an_embedding_shares_stays_in_float32() -> None:
    model = make_model("bert")
    shared = nn.Linear(16, 40, bias=False)
    shared.weight = model.bert.embeddings.word_embeddings.weight
    model.bert.tied = shared
    hold_in_bfloat16(model)
    assert shared.weight is model.bert.embeddings.word_embeddings.weight
    assert shared.weight.dtype == torch.float32


def test_product_with_a_coarse_weight_is_that_with_its_numbers_and_twice_differentiable() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=generator).bfloat16()
    rows = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()  # of two lanes
    torch.testing.assert_close(rows_by_weight(rows, weight), rows @ weight.double().T, rtol=0, atol=0)
    assert rows_by_weight(weight, weight.half()).dtype == torch.float32  # which has the bits of both
    assert torch.autograd.gradcheck(lambda each: rows_by_weight(each, weight), rows)
    assert torch.autograd.gradgradcheck(lambda each: rows_by_weight(each, weight).square(), rows)


def test_no_finer_copy_of_a_weight_is_kept_for_the_gradient() -> None:
    weight, rows = torch.randn(5, 3).bfloat16(), torch.randn(4, 3, requires_grad=True)
    kept: list[Tensor] = []

    def keep(each: Tensor) -> Tensor:
        kept.append(each)
        return each

    with saved_tensors_hooks(keep, lambda each: each):
        rows_by_weight(rows, weight)
    assert [each.data_ptr() for each in kept] == [weight.data_ptr()]
