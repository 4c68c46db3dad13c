"""The fast layer equals PEFT's DoRA layer, and autograd through the built weight (contract 2)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from peft_bidora.adapter import layer
from peft_bidora.adapter.attach import use_closed_form
from peft_bidora.adapter.layer import (
    base_product,
    base_row_norm_squared,
    base_weight,
    direction_norm,
    dora_layers,
    effective_change,
    factors_of,
    norm_in_graph,
    set_norm_in_graph,
)
from peft_bidora.adapter.outputs import SMALLEST, keep_outputs, leaves_outputs_alone

IN, OUT = 7, 5
KINDS = ["linear", "linear-no-bias", "conv1d"]
kinds = pytest.mark.parametrize("kind", KINDS)
dropouts = pytest.mark.parametrize("dropout", [0.0, 0.4])


class One(nn.Module):
    """A model of one layer, (…, 7) to (…, 5)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = Conv1D(OUT, IN) if kind == "conv1d" else nn.Linear(IN, OUT, bias=kind == "linear")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def make(kind: str, dropout: float = 0.0, closed_form: bool = True, dtype: torch.dtype = torch.float64) -> PeftModel:
    """PEFT's DoRA over one layer, with no parameter at its start."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        lora_dropout=dropout,
        target_modules=["layer"],
        use_dora=True,
        fan_in_fan_out=kind == "conv1d",
    )
    model = get_peft_model(One(kind), config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        for _, module, name in dora_layers(model):
            module.lora_magnitude_vector[name].weight.abs_().add_(0.5)
    if closed_form:
        use_closed_form(model)
    return model.train()


def to_bfloat16(model: PeftModel) -> PeftModel:
    """Round the base layer, as in a model that was loaded in bfloat16; PEFT keeps its adapter in float32."""
    ((_, module, _),) = dora_layers(model)
    module.get_base_layer().to(torch.bfloat16)
    return model


def layer_of(model: PeftModel) -> tuple[Any, tuple[Tensor, Tensor, Tensor]]:
    ((_, module, name),) = dora_layers(model)
    return module, (module.lora_A[name].weight, module.lora_B[name].weight, module.lora_magnitude_vector[name].weight)


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, IN, generator=generator, dtype=torch.float64).requires_grad_()


def run(model: PeftModel) -> tuple[Tensor, ...]:
    """Return the output and the gradients of A, B, m and the input, of a loss that weighs the outputs unequally."""
    return run_as(model, model)


def run_as(function: Callable[[Tensor], Tensor], model: PeftModel, backward: bool = False) -> tuple[Tensor, ...]:
    """As `run`, by a function that computes what the model does; `backward` fills `.grad`, as some functions need."""
    x = inputs()
    torch.manual_seed(2)
    output = function(x)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    loss, of = (weights * output**2).sum(), [*layer_of(model)[1], x]
    if not backward:
        return output.detach(), *torch.autograd.grad(loss, of)
    loss.backward()
    return output.detach(), *(tensor.grad for tensor in of)


def built_direction(model: PeftModel) -> Tensor:
    module, (a, b, _) = layer_of(model)
    return base_weight(module) + module.scaling["default"] * b @ a


def run_built(model: PeftModel) -> tuple[Tensor, ...]:
    """As `run`, through W' = (m/‖V‖)⊙V with V built and the norm in the graph."""
    module, (a, b, m) = layer_of(model)
    direction = built_direction(model)
    x, bias = inputs(), module.get_base_layer().bias
    output = nn.functional.linear(x, (m / direction.norm(dim=1))[:, None] * direction, bias)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    gradients = torch.autograd.grad((weights * output**2).sum(), [a, b, m, x])
    return output.detach(), *gradients


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        # Contract 2: float64, sums taken in another order.
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@kinds
@dropouts
def test_outputs_and_gradients_are_those_of_peft_with_the_norm_detached(kind, dropout):
    assert_equal(run(make(kind, dropout)), run(make(kind, dropout, closed_form=False)))


@kinds
def test_evaluation_is_that_of_peft(kind):
    assert_equal(run(make(kind, 0.4).eval()), run(make(kind, 0.4, closed_form=False).eval()))


@kinds
def test_norm_in_the_graph_gives_the_gradients_of_the_built_weight(kind):
    model = make(kind)
    with norm_in_graph(model):
        assert_equal(run(model), run_built(model))


@kinds
def test_norm_in_the_graph_changes_gradients_of_the_direction_and_no_value(kind):
    model = make(kind, 0.4)
    detached = run(model)
    with norm_in_graph(model):
        whole = run(model)
    assert torch.equal(whole[0], detached[0])
    assert not torch.allclose(whole[1], detached[1], rtol=0.01)
    assert not torch.allclose(whole[2], detached[2], rtol=0.01)
    assert_equal(whole[3:], detached[3:])


def test_norm_in_graph_ends_with_its_block_also_on_error():
    model = make("linear")
    detached = run(model)
    with pytest.raises(RuntimeError, match="half-way"), norm_in_graph(model):
        raise RuntimeError("half-way")
    assert all(map(torch.equal, run(model), detached))
    set_norm_in_graph(model, True)
    assert not torch.equal(run(model)[1], detached[1])


def keeps_output(model: PeftModel) -> bool:
    return layer_of(model)[0].lora_variant["default"].keep_output


@kinds
@dropouts
def test_gradients_read_off_the_output_are_the_same(kind, dropout):
    model = make(kind, dropout)
    with norm_in_graph(model):
        expected = run(model)
        keep_outputs(model)
        assert keeps_output(model)
        assert_equal(run(model), expected)
    assert not keeps_output(model)


@pytest.mark.parametrize("fraction", [0.0, 1e-300, 0.2, -0.2])
def test_gradient_of_a_small_magnitude_is_not_read_off_the_output(fraction):
    model = make("linear")
    module, (_, _, magnitude) = layer_of(model)
    set_norm_in_graph(model, True)
    keep_outputs(model)
    with torch.no_grad():
        magnitude[1] = fraction * base_weight(module)[1].norm()
    keep_outputs(model)
    assert not keeps_output(model)
    assert_equal(run(model), run_built(model))


def test_magnitude_of_an_empty_row_is_trained():
    model = make("linear")
    module, (_, _, magnitude) = layer_of(model)
    with torch.no_grad():
        module.get_base_layer().weight[1] = 0.0
        magnitude[1] = 0.0
    set_norm_in_graph(model, True)
    keep_outputs(model)
    assert_equal(run(model), run_built(model))
    assert run(model)[3][1] != 0


@kinds
@pytest.mark.parametrize("keep", [True, False])
def test_mixed_derivative_is_that_of_the_built_weight(kind, keep):
    model = make(kind)
    module, (a, b, m) = layer_of(model)

    def mixed(output: Tensor) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad((output**3).sum(), m, create_graph=True)
        return torch.autograd.grad((first * torch.arange(1.0, OUT + 1, dtype=torch.float64)).sum(), [a, b])

    direction = built_direction(model)
    weight = (m / direction.norm(dim=1))[:, None] * direction
    expected = mixed(nn.functional.linear(inputs(), weight, module.get_base_layer().bias))
    with norm_in_graph(model):
        if keep:
            keep_outputs(model)
        found = mixed(model(inputs()))
    assert_equal(found, expected)


def norm_of(module, in_graph=False):
    return direction_norm(module, factors_of(module, "default"), in_graph=in_graph)


def test_norm_is_computed_outside_of_autocast():
    model = make("linear", dtype=torch.float32)
    module, _ = layer_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norm = norm_of(module)
    assert norm.dtype == torch.float32
    # 1e-5: float32; bfloat16 has 4e-3.
    torch.testing.assert_close(norm, built_direction(model).detach().norm(dim=1), rtol=1e-5, atol=0)


@kinds
def test_base_quantities_are_those_of_the_weight_as_out_by_in(kind):
    model = make(kind)
    module, (a, _, _) = layer_of(model)
    module.get_base_layer().weight.requires_grad_()
    weight = base_weight(module)
    assert weight.shape == (OUT, IN)
    assert not weight.requires_grad
    x = torch.randn(3, IN, dtype=torch.float64)
    bias = 0 if kind == "linear-no-bias" else module.get_base_layer().bias
    # 1e-12: float64, sums in another order.
    torch.testing.assert_close(module.get_base_layer()(x), x @ weight.T + bias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(base_product(module, a), weight @ a.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(base_row_norm_squared(module), weight.norm(dim=1) ** 2, rtol=1e-12, atol=0)


@kinds
@dropouts
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "plain"])
def test_base_weight_in_bfloat16_computes_what_peft_does(kind, dropout, autocast):
    outputs = []
    for closed_form in (True, False):
        model = to_bfloat16(make(kind, dropout, closed_form, dtype=torch.float32))
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs.append(model(inputs().bfloat16()))
    assert outputs[0].dtype == torch.bfloat16
    # 1 %: two and a half roundings of bfloat16.
    assert (outputs[0] - outputs[1]).norm() <= 0.01 * outputs[1].norm()


@kinds
def test_norm_of_a_base_weight_in_bfloat16_is_summed_in_float32(kind):
    module, _ = layer_of(to_bfloat16(make(kind, dtype=torch.float32)))
    expected = base_weight(module).double().square().sum(dim=1).float()
    # 1e-6: a few additions in float32; bfloat16 has 4e-3.
    torch.testing.assert_close(base_row_norm_squared(module), expected, rtol=1e-6, atol=0)


@kinds
def test_bias_does_not_drown_the_norm_of_a_base_weight_in_bfloat16(kind):
    model = make(kind, dtype=torch.float32)
    module, _ = layer_of(model)
    if module.get_base_layer().bias is not None:
        with torch.no_grad():
            module.get_base_layer().bias.fill_(300)
    norm = norm_of(to_bfloat16(model).base_model.model.layer)
    # 1 %: the product with A is rounded to bfloat16, the bias would round it to whole numbers.
    torch.testing.assert_close(norm, built_direction(model).norm(dim=1), rtol=0.01, atol=0)


@kinds
@dropouts
def test_autocast_reaches_every_operation_over_the_output(kind, dropout):
    model = make(kind, dropout, dtype=torch.float32)
    module, _ = layer_of(model)
    x = inputs().float()
    with torch.autocast("cpu", torch.bfloat16):
        result = module.get_base_layer()(x)
        assert module.lora_variant["default"].forward(module, "default", x, result).dtype == torch.bfloat16


@kinds
@pytest.mark.parametrize("base", [torch.float64, torch.bfloat16])
def test_effective_change_is_that_of_the_built_weight(kind, base):
    model = make(kind) if base is torch.float64 else to_bfloat16(make(kind, dtype=torch.float32))
    module, (a, b, m) = (layer_of(model)[0], [part.double() for part in layer_of(model)[1]])
    weight = base_weight(module).double()
    direction = weight + 2 * b @ a
    expected = m[:, None] * direction / direction.norm(dim=1, keepdim=True) - weight
    found = effective_change(module, "default")
    # The precision of the adapter, float64 or float32; bfloat16 has 4e-3.
    rtol = 1e-12 if base is torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), expected.detach(), rtol=rtol, atol=rtol)


def test_norm_builds_no_graph_under_no_grad():
    module, _ = layer_of(make("linear"))
    assert norm_of(module, in_graph=True).requires_grad
    with torch.no_grad():
        assert not norm_of(module, in_graph=True).requires_grad


def test_effective_change_is_at_least_in_float32():
    module, _ = layer_of(make("linear").to(torch.bfloat16))
    assert effective_change(module, "default").dtype == torch.float32


def test_base_norm_is_computed_once():
    model = make("linear")
    module, _ = layer_of(model)
    first = base_row_norm_squared(module)
    model(inputs())
    assert base_row_norm_squared(module) is first
    assert not [name for name in model.state_dict() if "norm_squared" in name]


def double_in_place(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def load_doubled(layer: nn.Module) -> None:
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})


def replace_data(layer: nn.Module) -> None:
    layer.weight.data = 2 * layer.weight.data


@kinds
@pytest.mark.parametrize("change", [double_in_place, load_doubled, replace_data])
def test_norm_follows_a_base_weight_that_changes(kind, change):
    model, stock = make(kind), make(kind, closed_form=False)
    run(model)
    change(layer_of(model)[0].get_base_layer())
    change(layer_of(stock)[0].get_base_layer())
    assert_equal(run(model), run(stock))


@kinds
@pytest.mark.parametrize("safe_merge", [True, False])
def test_merging_and_unmerging_leave_no_stale_norm(kind, safe_merge):
    model = make(kind).eval()
    before = model(inputs()).detach()
    for _ in range(2):
        model.merge_adapter(safe_merge=safe_merge)
        base_row_norm_squared(layer_of(model)[0])
        merged = model(inputs()).detach()
        model.unmerge_adapter()
        after = model(inputs()).detach()
        # 1e-10: the division by m/n and back, in float64.
        torch.testing.assert_close(merged, before, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-11)


def double_b(model: PeftModel) -> None:
    with torch.no_grad():
        layer_of(model)[1][1].mul_(2)


def load_other(model: PeftModel) -> None:
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})


def replace_a(model: PeftModel) -> None:
    layer_of(model)[1][0].data = 2 * layer_of(model)[1][0].data


def raise_m(model: PeftModel) -> None:
    with torch.no_grad():
        layer_of(model)[1][2].add_(1)


def rescale(model: PeftModel) -> None:
    layer_of(model)[0].scaling["default"] *= 2


def change_base(model: PeftModel) -> None:
    double_in_place(layer_of(model)[0].get_base_layer())


def change_bias(model: PeftModel) -> None:
    layer = layer_of(model)[0].get_base_layer()
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias.add_(1)


def take_other_adapter(model: PeftModel) -> None:
    torch.manual_seed(5)
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "other" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))


def merge_and_unmerge(model: PeftModel) -> None:
    model.merge_adapter()
    model(inputs())
    model.unmerge_adapter()


def train_past_the_counters(model: PeftModel) -> None:
    """As an optimiser does that writes into `.data`: storage and version stay the same."""
    model.train()(inputs())
    layer_of(model)[1][1].data.mul_(2)
    model.eval()


@kinds
@pytest.mark.parametrize(
    "change",
    [double_b, load_other, replace_a, raise_m, rescale, change_base, change_bias, take_other_adapter, merge_and_unmerge,
     train_past_the_counters],
)  # fmt: skip
def test_prediction_follows_what_changes(kind, change):
    model, stock = make(kind).eval(), make(kind, closed_form=False).eval()
    with torch.no_grad():
        before = model(inputs())
        torch.testing.assert_close(before, stock(inputs()), rtol=1e-10, atol=1e-11)
    for each in (model, stock):
        change(each)
    use_closed_form(model)
    with torch.no_grad():
        found = model(inputs())
        torch.testing.assert_close(found, stock(inputs()), rtol=1e-10, atol=1e-11)
    if change is not merge_and_unmerge and not (change is change_bias and kind == "linear-no-bias"):
        assert not torch.allclose(found, before)


@kinds
def test_prediction_computes_the_norm_once(kind, monkeypatch):
    model = make(kind).eval()
    calls, computed = [], layer.direction_norm
    monkeypatch.setattr(
        layer, "direction_norm", lambda *args, **kwargs: calls.append(args) or computed(*args, **kwargs)
    )
    for _ in range(3):
        with torch.no_grad():
            model(inputs())
    assert len(calls) == 1
    model(inputs())  # with gradients on, the norm is computed anew
    assert len(calls) == 2


@kinds
def test_prediction_in_inference_mode_is_never_stale(kind):
    with torch.inference_mode():
        model = make(kind).eval()
        before = model(inputs())
        layer_of(model)[1][1].mul_(2)
        assert not torch.allclose(model(inputs()), before)


@kinds
def test_prediction_leaves_what_a_hook_keeps_of_the_base_layer(kind):
    model = make(kind).eval()
    base_layer, kept = layer_of(model)[0].get_base_layer(), []
    base_layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        model(inputs())
        first = kept[0]
        assert torch.equal(first, base_layer(inputs()))


@kinds
def test_prediction_works_under_vmap(kind):
    model, x = make(kind).eval(), inputs().detach()
    with torch.no_grad(), pytest.warns(UserWarning, match="batching rule"):
        found = torch.vmap(model)(x)
    # 1e-12: float64, products of another shape.
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-12, atol=1e-12)


@kinds
def test_shapes_can_be_followed_on_the_meta_device(kind):
    model = make(kind).eval()
    with torch.no_grad():
        model(inputs())
    model.to("meta")
    with torch.no_grad():
        assert model(inputs().to("meta")).shape == (2, 4, OUT)


@kinds
def test_prediction_follows_the_precision(kind):
    model = make(kind, dtype=torch.float32).eval()
    x = inputs().float()
    with torch.no_grad():
        before = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
        assert torch.equal(model(x), before)


@kinds
def test_dropout_of_training_is_there_without_gradients_too(kind):
    found = []
    for closed_form in (True, False):
        model = make(kind, 0.4, closed_form=closed_form)
        torch.manual_seed(2)
        with torch.no_grad():
            found.append((model(inputs()),))
    assert_equal(*found)


# torch's own: it makes an instance of every autograd function that it compiles.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@kinds
@pytest.mark.parametrize("in_graph", [False, True])
def test_compiled_layer_has_the_same_values_and_gradients(kind, in_graph):
    model = make(kind)
    set_norm_in_graph(model, in_graph)
    torch.compiler.reset()  # what was compiled for another test counts against the limit
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_equal(run(model), run_as(compiled, model))
    model.eval()
    with torch.no_grad():
        compiled(inputs())
        double_b(model)
        torch.testing.assert_close(compiled(inputs()), model(inputs()), rtol=1e-10, atol=1e-11)


@kinds
@dropouts
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layer_has_the_same_values_and_gradients(kind, dropout, reentrant):
    model = make(kind, dropout)
    set_norm_in_graph(model, True)
    assert_equal(run(model), run_as(partial(checkpoint, model, use_reentrant=reentrant), model, backward=True))


class Written(nn.Module):
    """A layer, and what writes into its output or leaves it alone."""

    def __init__(self, in_place):
        super().__init__()
        self.layer, self.after = nn.Linear(IN, OUT), nn.ReLU(inplace=in_place)
        self.norm = nn.BatchNorm1d(OUT)

    def forward(self, x):
        return self.norm(self.after(self.layer(x)))


@pytest.mark.parametrize("in_place", [True, False])
def test_output_that_is_written_into_is_told(in_place):
    torch.manual_seed(0)
    model = get_peft_model(Written(in_place), LoraConfig(r=4, target_modules=["layer"], use_dora=True))
    use_closed_form(model)
    set_norm_in_graph(model, True)
    x = torch.randn(6, IN)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert leaves_outputs_alone(model, lambda: model(x)) == (not in_place)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(x).sum().backward()  # what is not kept may be written into


def test_output_is_kept_only_where_no_scale_is_small():
    """The norm of V may have grown beyond that of W0: it is V's that the scale is of."""
    model = make("linear")
    module, (_, b, m) = layer_of(model)
    with torch.no_grad():
        b.mul_(100)
        m.copy_(0.5 * base_row_norm_squared(module).sqrt())
    assert bool((m < SMALLEST * norm_of(module)).any())
    keep_outputs(model)
    assert not module.lora_variant["default"].keep_output
