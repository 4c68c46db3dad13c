"""The adapted layer over base weights that bitsandbytes packed into 8 and 4 bits, against PEFT's own layer."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from peft_bidora import AdapterOptions, attach_adapter
from peft_bidora.adapter.attach import use_closed_form
from peft_bidora.adapter.layer import base_product, base_weight, dora_layers, set_norm_in_graph
from peft_bidora.adapter.packed import rounds_coarsely
from peft_bidora.adapter.parameters import split_levels
from peft_bidora.bilevel.hypergradient import (
    BilevelProblem,
    central_difference_hypergradient,
    exact_hypergradient,
    one_sided_difference_hypergradient,
)
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state
from peft_bidora.bilevel.tensors import cosine, norm
from peft_bidora.errors import AdapterError

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings(
    "ignore:MatMul8bitLt",  # it tells that it casts
    "ignore:Merge lora module to",  # peft tells that rounding follows
)
TARGETS = ["q_proj", "v_proj", "down_proj"]
PACKED = {
    4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    8: BitsAndBytesConfig(load_in_8bit=True),
}
IDS = torch.randint(0, 128, (4, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder; its sides are multiples of the 64 numbers that share a scale."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=128, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager", **shape
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load(source: Path, bits: int) -> Any:
    return LlamaForCausalLM.from_pretrained(source, quantization_config=PACKED[bits], attn_implementation="eager")


def drawn(model: Any) -> Any:
    """The model with an adapter that is not at its start, the same at each call."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter + 0.2 * noise if "magnitude" in name else 0.1 * noise)
    return model


def ours(model: Any) -> Any:
    options = AdapterOptions(4, 8, 0.0, TARGETS)
    return drawn(attach_adapter(model, options, use_dora=True, task_type="CAUSAL_LM", head=[]))


def stock(model: Any) -> Any:
    return drawn(
        get_peft_model(
            model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, use_dora=True, task_type="CAUSAL_LM")
        )
    )


def loss_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model.train()(IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("bits", [4, 8])
def test_loss_and_gradients_are_those_of_peft(source: Path, bits: int) -> None:
    expected_loss, expected = loss_and_gradients(stock(load(source, bits)))
    found_loss, found = loss_and_gradients(ours(load(source, bits)))
    # float32; 8 bits round what a layer reads, where a last digit may tip a number over.
    tolerance = 1e-4 if bits == 4 else 1e-2
    torch.testing.assert_close(found_loss, expected_loss, rtol=tolerance, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize("bits", [4, 8])
def test_no_unpacked_copy_of_a_weight_is_kept_for_the_gradient(source: Path, bits: int) -> None:
    _, module, adapter = next(iter(dora_layers(ours(load(source, bits)))))
    kept: list[torch.Tensor] = []

    def keep(each: torch.Tensor) -> torch.Tensor:
        kept.append(each)
        return each

    with saved_tensors_hooks(keep, lambda each: each):
        base_product(module, module.lora_A[adapter].weight)
    assert kept or bits == 4  # which bitsandbytes keeps without telling autograd
    assert all(each.numel() < base_weight(module).numel() for each in kept if each.is_floating_point())


def test_packed_weight_is_unpacked_for_what_needs_it_whole(source: Path) -> None:
    model = ours(load(source, 4))
    unpacked = unpack(model)
    pairs = zip(dora_layers(model), dora_layers(unpacked), strict=True)
    assert all(torch.equal(base_weight(packed), base_weight(plain)) for (_, packed, _), (_, plain, _) in pairs)


def unpack(model: Any) -> Any:
    """The same adapter over the same weights in float32."""
    config = model.get_base_model().config
    plain = LlamaForCausalLM(LlamaConfig.from_dict({**config.to_dict(), "quantization_config": None}))
    plain.set_attn_implementation("eager")
    adapted = ours(plain)
    packed_layers = {name: module for name, module, _ in dora_layers(model)}
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    adapted.load_state_dict(state, strict=False)
    for name, module, _ in dora_layers(adapted):
        module.get_base_layer().weight.data = base_weight(packed_layers[name])
    return with_unpacked_rest(adapted, model)


def with_unpacked_rest(adapted: Any, model: Any) -> Any:
    import bitsandbytes as bnb

    plain = dict(adapted.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit) and not name.endswith("base_layer"):
            plain[name].weight.data = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return adapted


def problem(model: Any) -> BilevelProblem:
    model.eval()
    set_norm_in_graph(model, True)
    levels = split_levels(model)

    def loss(ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(ids, labels=ids).loss
        return found

    direction, magnitude = tuple(levels.direction.values()), tuple(levels.magnitude.values())
    lower = [ReplayedLoss(partial(loss, IDS[:2]), capture_random_state())]
    return BilevelProblem(lower, [partial(loss, IDS[2:])], direction, magnitude)


def test_differences_over_four_bits_are_the_exact_product_over_the_unpacked_weights(source: Path) -> None:
    model = ours(load(source, 4))
    expected = exact_hypergradient(problem(unpack(model)), xi=1.0).implicit
    for estimator in (central_difference_hypergradient, one_sided_difference_hypergradient):
        found = estimator(problem(model), xi=1.0, radius=1e-2).implicit
        # float32, and a radius for real models.
        assert cosine(found, expected).item() >= 0.999
        assert (norm(found) / norm(expected)).item() == pytest.approx(1.0, rel=2e-2)


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_the_same_after_an_evaluation(source: Path, bits: int) -> None:
    model = ours(load(source, bits))
    with torch.no_grad():
        model.eval()(IDS)
    _, expected = loss_and_gradients(ours(load(source, bits)))
    _, found = loss_and_gradients(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_product_with_eight_bits_does_not_pass_the_layer_which_rounds_what_it_reads(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, module, adapter = next(iter(dora_layers(ours(load(source, 8)))))
    lora_a = module.lora_A[adapter].weight
    monkeypatch.setattr(module.get_base_layer(), "forward", lambda x: pytest.fail("the layer was asked"))
    torch.testing.assert_close(base_product(module, lora_a), base_weight(module) @ lora_a.T)


def test_adapter_that_peft_attached_keeps_its_gradients_too(source: Path) -> None:
    _, expected = loss_and_gradients(ours(load(source, 4)))
    model = stock(load(source, 4))
    use_closed_form(model)
    with torch.no_grad():
        model.eval()(IDS)
    _, found = loss_and_gradients(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_four_bits_that_were_laid_out_anew_for_predictions_are_refused(source: Path) -> None:
    base = load(source, 4).eval()
    with torch.no_grad():
        base(IDS)
    layer = base.model.layers[0].mlp.up_proj
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this processor has no instructions for another layout")
    with pytest.raises(AdapterError, match="4-bit weights out anew: no gradient passes them"):
        ours(base)


def test_predictions_over_four_bits_are_those_over_the_unpacked_weights(source: Path) -> None:
    model = ours(load(source, 4)).eval()
    with torch.no_grad():
        first = model(IDS).logits
        torch.testing.assert_close(model(IDS).logits, first, rtol=0, atol=0)
        torch.testing.assert_close(first, unpack(model).eval()(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("compute", "expected"), [(torch.float32, False), (torch.bfloat16, True)])
def test_what_four_bits_are_computed_in_is_how_coarse_they_are(
    source: Path, compute: torch.dtype, expected: bool
) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    assert rounds_coarsely(LlamaForCausalLM.from_pretrained(source, quantization_config=config)) is expected


def test_eight_bits_are_coarse(source: Path) -> None:
    assert rounds_coarsely(load(source, 8))


@pytest.mark.parametrize("training", [True, False], ids=["training", "prediction"])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_base_works_under_autocast(source: Path, bits: int, training: bool) -> None:
    model = ours(load(source, bits)).train(training)
    with torch.no_grad():
        expected = model(IDS).logits
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        logits = model(IDS).logits
    # bfloat16 has 3 digits.
    assert (logits.float() - expected).norm() <= 0.02 * expected.norm()
    if training:
        logits.float().square().sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)


def test_bias_does_not_drown_the_product_with_a_packed_weight() -> None:
    import bitsandbytes as bnb

    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 64)
    packed = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.bfloat16, quant_type="nf4")
    packed.load_state_dict({"weight": plain.weight.detach(), "bias": torch.full((64,), 300.0)})
    module = torch.nn.Sequential(packed.to("cpu"))
    adapted = get_peft_model(module, LoraConfig(r=4, target_modules=["0"], use_dora=True))
    use_closed_form(adapted)
    ((_, layer, _),) = dora_layers(adapted)
    lora_a = layer.lora_A["default"].weight.detach()
    found, expected = base_product(layer, lora_a), base_weight(layer).float() @ lora_a.T
    # bfloat16 rounds the product by 0.4 %; with a bias of 300 a digit is worth 2.
    assert (found.float() - expected).norm() <= 0.01 * expected.norm()
    assert bool((packed.bias == 300).all())
