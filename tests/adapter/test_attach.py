"""A fresh adapter changes nothing, on every family of models that has its own names and layers (contract 1)."""

import pytest
import torch
from families import ENCODER, FAMILIES, attach, make_batch, make_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig, BertLMHeadModel

from peft_bidora.adapter.attach import (
    AdapterOptions,
    attach_adapter,
    count_trainable,
    head_modules,
    resolve_target_modules,
    use_closed_form,
)
from peft_bidora.adapter.export import save_adapter
from peft_bidora.adapter.layer import ClosedFormDoraVariant, base_weight, dora_layers
from peft_bidora.errors import AdapterError


@torch.no_grad()
def logits(model: nn.Module, family: str) -> torch.Tensor:
    output = model.eval()(**make_batch(family))
    return output.logits


@pytest.mark.parametrize("target_modules", [None, "all-linear"], ids=["query-value", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapter_computes_what_the_base_model_does(family, target_modules, tmp_path):
    base = make_model(family)
    expected = logits(base, family)
    adapted = attach(base, target_modules)
    # Contract 1: float32, the rounding of one more multiplication a layer.
    torch.testing.assert_close(logits(adapted, family), expected, rtol=1e-5, atol=1e-6)
    save_adapter(adapted, tmp_path)
    stock = PeftModel.from_pretrained(make_model(family), str(tmp_path))
    torch.testing.assert_close(logits(stock, family), expected, rtol=1e-5, atol=1e-6)
    assert not any(type(module.lora_variant[name]) is ClosedFormDoraVariant for _, module, name in dora_layers(stock))


@pytest.mark.parametrize("family", FAMILIES)
def test_query_and_value_are_adapted_by_default(family):
    base = make_model(family)
    assert resolve_target_modules(base, None) == FAMILIES[family][1]
    adapted = attach(base)
    found = [name.split(".")[-1] for name, _, _ in dora_layers(adapted)]
    assert set(found) == set(FAMILIES[family][1])
    # Two layers each; T5 has an encoder of two and a decoder of two with attention to itself and across.
    assert len(found) == len(FAMILIES[family][1]) * (6 if family == "t5" else 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_adapts_every_linear_layer_of_the_base_model_and_none_of_the_head(family):
    base = make_model(family)
    inner = getattr(base, base.base_model_prefix)
    # What ESM predicts contacts with is no part of its forward pass.
    expected = {
        f"{base.base_model_prefix}.{name}"
        for name, module in inner.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and "contact_head" not in name
    }
    adapted = attach(base, "all-linear")
    assert {name.removeprefix("base_model.model.") for name, _, _ in dora_layers(adapted)} == expected
    shapes = {tuple(base_weight(module).shape) for _, module, _ in dora_layers(adapted)}
    assert any(rows == columns for rows, columns in shapes)
    assert any(rows > columns for rows, columns in shapes)
    assert any(rows < columns for rows, columns in shapes)


@pytest.mark.parametrize("target_modules", [None, "all-linear"], ids=["query-value", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_and_head_are_trainable_and_nothing_of_the_base_model_is(family, target_modules):
    base = make_model(family)
    heads = head_modules(base)
    assert sorted(heads) == sorted(FAMILIES[family][2])
    adapted = attach(base, target_modules)
    for name, parameter in adapted.named_parameters():
        of_adapter = any(part in name for part in ("lora_A.", "lora_B.", "lora_magnitude_vector."))
        of_head = any(f".{head}.modules_to_save.default." in name for head in heads)
        assert parameter.requires_grad == (of_adapter or of_head), name


@pytest.mark.parametrize("use_dora", [True, False], ids=["dora", "lora"])
@pytest.mark.parametrize(
    ("family", "target_modules"),
    [("bert", None), ("gpt2", "all-linear"), ("llama", "all-linear"), ("roberta", ["dense"])],
)
def test_trainable_parameters_are_counted_before_they_are_there(family, target_modules, use_dora):
    options = AdapterOptions(rank=3, target_modules=target_modules)
    with torch.device("meta"):
        bare = make_model(family)
    count = count_trainable(bare, options, use_dora=use_dora, head=head_modules(bare))
    base = make_model(family)
    adapted = attach_adapter(base, options, use_dora=use_dora, head=head_modules(base))
    assert count == sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_base_row_norm_is_the_magnitude_of_a_fresh_adapter(family):
    for _, module, name in dora_layers(attach(make_model(family), "all-linear")):
        magnitude = module.lora_magnitude_vector[name].weight
        # 1e-6: the two sums of squares round in float32.
        torch.testing.assert_close(base_weight(module).norm(dim=1), magnitude.detach(), rtol=1e-6, atol=1e-7)


def test_language_model_head_is_not_adapted():
    base = AutoModelForMaskedLM.from_config(BertConfig(**ENCODER))
    names = resolve_target_modules(base, "all-linear")
    assert "cls.predictions.decoder" not in names
    assert any(name.endswith("attention.self.query") for name in names)


def test_bare_encoder_has_no_head():
    assert head_modules(make_model("bert").bert) == []


def test_lora_has_no_magnitude(make_adapted):
    assert list(dora_layers(make_adapted(use_dora=False))) == []


def test_options_reach_the_layers():
    adapted = attach(make_model("bert"), ["key"], dropout=0.25)
    assert adapted.peft_config["default"].task_type == "SEQ_CLS"
    layers = list(dora_layers(adapted))
    assert {name.split(".")[-1] for name, _, _ in layers} == {"key"}
    for _, module, name in layers:
        assert module.scaling[name] == 3.0
        assert module.lora_A[name].weight.shape == (4, 16)
        assert module.lora_dropout[name].p == 0.25


def test_one_variant_serves_all_layers():
    adapted = attach(make_model("bert"))
    variants = {id(module.lora_variant[name]) for _, module, name in dora_layers(adapted)}
    assert len(variants) == 1
    use_closed_form(adapted)
    assert {id(module.lora_variant[name]) for _, module, name in dora_layers(adapted)} == variants


def test_string_and_full_name_are_target_modules():
    base = make_model("bert")
    assert resolve_target_modules(base, "query") == ["query"]
    name = "bert.encoder.layer.0.attention.self.value"
    assert resolve_target_modules(base, [name]) == [name]


def test_unknown_target_module_names_the_layers_and_the_nearest():
    with pytest.raises(
        AdapterError, match=r"'qurey' matches no linear layer of Bert\w+\. Did you mean 'query'\?"
    ) as it:
        resolve_target_modules(make_model("bert"), ["qurey", "zzz"])
    message = str(it.value)
    assert "There are: dense, key, query, value; or write all-linear." in message
    assert "'zzz' matches no linear layer" in message


def test_empty_list_of_target_modules_is_an_error():
    with pytest.raises(AdapterError, match=r"adapter\.target_modules is an empty list; name a layer, or write null"):
        resolve_target_modules(make_model("bert"), [])


@pytest.mark.parametrize("name", ["word_embeddings", "LayerNorm"])
def test_layer_that_is_not_linear_is_no_target_module(name):
    with pytest.raises(AdapterError, match=f"adapter.target_modules: '{name}' matches no linear layer"):
        resolve_target_modules(make_model("bert"), [name])


def test_head_is_no_target_module():
    with pytest.raises(AdapterError, match=r"'classifier' matches no linear layer"):
        resolve_target_modules(make_model("bert"), ["classifier"])


def test_layer_whose_name_begins_like_the_head_is_a_target_module():
    class Odd(nn.Module):
        base_model_prefix = "encoder"

        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.en = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)

    assert head_modules(Odd()) == ["en"]
    assert resolve_target_modules(Odd(), "all-linear") == ["encoder.0"]


def test_architecture_without_known_projections_lists_its_layers():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)

    with pytest.raises(AdapterError, match=r"Odd has no query and value projections .*: left, right; or write all-"):
        resolve_target_modules(Odd(), None)


@pytest.mark.parametrize(
    ("target", "kind"), [("word_embeddings", "Embedding"), ("projection", "Conv2d")], ids=["embedding", "convolution"]
)
def test_dora_layer_that_is_not_linear_is_refused_and_no_layer_changed(target, kind):
    family = "vit" if kind == "Conv2d" else "bert"
    config = LoraConfig(r=4, use_dora=True, target_modules=["query", "q_proj", target])
    model = get_peft_model(make_model(family), config)
    with pytest.raises(AdapterError, match=rf"{target} is {kind}; the bi-level search adapts linear layers only"):
        use_closed_form(model)
    assert not any(type(module.lora_variant[name]) is ClosedFormDoraVariant for _, module, name in dora_layers(model))


@pytest.mark.parametrize("architecture", ["gpt2", "bart", "t5"])
def test_output_of_a_language_model_is_no_task_head(architecture, make_language_model) -> None:
    assert head_modules(make_language_model(architecture)) == []


def test_output_of_a_language_model_may_lie_inside_a_child() -> None:
    model = BertLMHeadModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                       intermediate_size=8, is_decoder=True))  # fmt: skip
    assert head_modules(model) == []


def test_weight_with_rows_of_zeros_is_refused_by_dora_alone():
    base = make_model("bert")
    with torch.no_grad():
        base.bert.encoder.layer[1].attention.self.value.weight[3:5] = 0
    with pytest.raises(AdapterError, match=r"2 of the 16 rows of .*layer\.1\.attention\.self\.value are zeros"):
        attach(base)
    options = AdapterOptions(rank=4, alpha=12)
    attach_adapter(make_model("bert"), options, use_dora=False, task_type="SEQ_CLS", head=["classifier"])
