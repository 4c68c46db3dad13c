"""Adapters side by side compute, each, what it computes alone."""

import pytest
import torch
from families import FAMILIES, attach, make_batch, make_model
from torch import nn

from peft_bidora.adapter.lanes import stack_lanes
from peft_bidora.adapter.layer import dora_layers, set_norm_in_graph
from peft_bidora.adapter.parameters import restore
from peft_bidora.adapter.regularizer import OrthogonalityRegularizer
from peft_bidora.errors import AdapterError

ALPHAS = (12, 6, 20)
LORA = 1  # the lane without magnitudes
graphs = pytest.mark.parametrize("in_graph", [False, True], ids=["norm-fixed", "norm-in-graph"])


def trained(model):
    return {name: p for name, p in model.named_parameters() if "lora_" in name or "modules_to_save" in name}


def make_lanes(family="bert", *, lora=LORA, **options):
    """Return the values of three lanes of one base model, in float64, and a PEFT model to compute with."""
    values = []
    model = attach(make_model(family), **options).double()
    generator = torch.Generator().manual_seed(3)
    for lane in range(len(ALPHAS)):
        drawn = {
            name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for name, p in trained(model).items()
        }
        values.append({name: v for name, v in drawn.items() if lane != lora or "magnitude" not in name})
    return model.eval(), values


def alone(family, values, alpha, *, in_graph, **options):
    """Return the model of one lane."""
    model = attach(make_model(family), **options).double().eval()
    set_norm_in_graph(model, in_graph)
    for _, module, adapter in dora_layers(model):
        module.scaling[adapter] = alpha / 4
        if not any("magnitude" in name for name in values):
            del module.lora_variant[adapter]
    restore({name: p for name, p in trained(model).items() if name in values}, values)
    return model


def rows_of(family, lanes):
    """Return a batch in which each lane has rows of its own."""
    batch = make_batch(family)
    moved = {
        name: [value if name == "attention_mask" else value.roll(lane, dims=-1) for lane in range(lanes)]
        for name, value in batch.items()
    }
    if "input_ids" in moved:
        for ids in moved["input_ids"]:
            ids[ids == 1], ids[:, -1] = 7, 1
    floats = {"pixel_values"}
    return [{n: v[lane].double() if n in floats else v[lane] for n, v in moved.items()} for lane in range(lanes)]


def joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@graphs
@pytest.mark.parametrize("target_modules", [None, "all-linear"], ids=["query-value", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lane_computes_what_its_adapter_does_alone(family, target_modules, in_graph):
    model, values = make_lanes(family, target_modules=target_modules)
    lanes = stack_lanes(model, values, [alpha / 4 for alpha in ALPHAS], norm_in_graph=in_graph)
    batches = rows_of(family, len(ALPHAS))
    logits = model(**joined(batches)).logits.unflatten(0, (len(ALPHAS), -1))
    stacked = {**lanes.direction, **lanes.magnitude}
    gradients = dict(zip(stacked, torch.autograd.grad(logits.square().sum(), list(stacked.values())), strict=True))
    for lane, alpha in enumerate(ALPHAS):
        single = alone(family, values[lane], alpha, in_graph=in_graph, target_modules=target_modules)
        expected = single(**batches[lane]).logits
        assert_same(logits[lane], expected)
        parameters = {name: p for name, p in trained(single).items() if name in values[lane]}
        of_single = torch.autograd.grad(expected.square().sum(), list(parameters.values()))
        for name, gradient in zip(parameters, of_single, strict=True):
            assert_same(gradients[name][lane], gradient)


def test_lane_without_magnitudes_has_no_gradient_of_them():
    model, values = make_lanes()
    lanes = stack_lanes(model, values, [1.0] * 3, norm_in_graph=True)
    loss = model(**joined(rows_of("bert", 3))).logits.square().sum()
    for gradient in torch.autograd.grad(loss, list(lanes.magnitude.values())):
        assert not gradient[LORA].any()
        assert gradient[0].any()


def test_lanes_of_lora_alone_compute_what_each_does():
    model, values = make_lanes()
    values = [{name: value for name, value in lane.items() if "magnitude" not in name} for lane in values]
    stack_lanes(model, values, [alpha / 4 for alpha in ALPHAS], norm_in_graph=False)
    batches = rows_of("bert", 3)
    logits = model(**joined(batches)).logits.unflatten(0, (3, -1))
    for lane, alpha in enumerate(ALPHAS):
        assert_same(logits[lane], alone("bert", values[lane], alpha, in_graph=False)(**batches[lane]).logits)


def test_no_bit_of_a_lane_depends_on_another():
    def gradient(changed):
        model, values = make_lanes(target_modules="all-linear")
        if changed:
            values[2] = {name: value * 1e3 + 7 for name, value in values[2].items()}
        lanes = stack_lanes(model, values, [3.0, 1.0, float("nan") if changed else 2.0], norm_in_graph=True)
        batches = rows_of("bert", 3)
        if changed:
            batches[2]["input_ids"] = batches[2]["input_ids"].flip(0)
        stacked = [*lanes.direction.values(), *lanes.magnitude.values()]
        found = torch.autograd.grad(model(**joined(batches)).logits.square().sum(), stacked)
        assert changed == any(bool(each[2].isnan().any()) for each in found)
        return [each[:2] for each in found]

    for one, other in zip(gradient(False), gradient(True), strict=True):
        assert torch.equal(one, other)


def test_views_of_a_lane_write_into_the_stack():
    model, values = make_lanes()
    lanes = stack_lanes(model, values, [1.0] * 3, norm_in_graph=False)
    for name, view in lanes.of_lane(2).items():
        stacked = {**lanes.direction, **lanes.magnitude}[name]
        if name in values[2]:
            assert torch.equal(view, values[2][name])
        view.fill_(5.0)
        assert bool((stacked[2] == 5.0).all())
        assert not bool((stacked[0] == 5.0).all())


def test_lanes_can_be_stacked_anew():
    model, values = make_lanes()
    stack_lanes(model, values, [1.0] * 3, norm_in_graph=True)
    stack_lanes(model, values[:1], [3.0], norm_in_graph=False)
    batch = rows_of("bert", 1)[0]
    assert_same(model(**batch).logits, alone("bert", values[0], 12, in_graph=False)(**batch).logits)


def test_dropout_of_a_head_differs_between_lanes():
    model, values = make_lanes("roberta")
    stack_lanes(model, [values[0], values[0]], [1.0] * 2, norm_in_graph=False)
    batch = rows_of("roberta", 1)[0]
    for name, module in model.named_modules():
        module.train("classifier" in name)
    first, second = model(**joined([batch, batch])).logits.chunk(2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("out", [16, 24], ids=["whole", "drawn"])
def test_orthogonality_of_a_lane_is_that_of_its_adapter(out, monkeypatch):
    if out == 24:  # as if its rows were too many to keep
        monkeypatch.setattr("peft_bidora.adapter.regularizer.MOST_ROWS", 16)
        monkeypatch.setattr("peft_bidora.adapter.regularizer.DRAWN_ROWS", 12)
    model, values = make_lanes(lora=None, target_modules="all-linear")
    lanes = stack_lanes(model, values, [alpha / 4 for alpha in ALPHAS], norm_in_graph=True)
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    found = OrthogonalityRegularizer(model).add_gradient(weights, step=3)
    for lane, alpha in enumerate(ALPHAS):
        single = alone("bert", values[lane], alpha, in_graph=True, target_modules="all-linear")
        assert_same(found[lane], OrthogonalityRegularizer(single).add_gradient(float(weights[lane]), step=3))
        for name, parameter in trained(single).items():
            if "lora_A" in name or "lora_B" in name:
                assert_same(lanes.direction[name].grad[lane], parameter.grad)


def test_adapter_of_an_embedding_is_refused():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model("bert"), LoraConfig(target_modules=["word_embeddings", "query"]))
    with pytest.raises(AdapterError, match=r"word_embeddings is Embedding; lanes adapt linear layers only\."):
        stack_lanes(model, [{}], [1.0], norm_in_graph=False)


def test_every_lane_needs_a_scaling():
    model = nn.Module()
    with pytest.raises(ValueError, match="a scaling for each of one lane or more, got 0 and 0"):
        stack_lanes(model, [], [], norm_in_graph=False)
