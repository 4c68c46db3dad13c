"""The orthogonality regulariser against autograd through the built D·Dᵀ − I."""

from itertools import combinations

import pytest
import torch

from peft_bidora.adapter import regularizer as regularizer_module
from peft_bidora.adapter.layer import base_weight, dora_layers
from peft_bidora.adapter.regularizer import OrthogonalityRegularizer, drawn_rows, orthogonality, share_of_rows


def built(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """‖D·Dᵀ − I‖_F with V, D and the product built."""
    v = weight + scaling * b @ a
    d = v / v.norm(dim=1, keepdim=True)
    return (d @ d.T - torch.eye(len(d), dtype=d.dtype)).norm()


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def computed(w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float):
    """Values and gradients for A and B of (layers, ...) tensors."""
    value, pulled, gradient_b = orthogonality(w @ a.mT, w @ w.mT, a, b, scaling)
    return value, pulled.mT @ (w + scaling * b @ a), gradient_b


@pytest.mark.parametrize("scaling", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("out", "width"), [(5, 5), (3, 8), (8, 3)])
@pytest.mark.parametrize("squared_at_a_time", [1, 20, 1000])
def test_value_and_gradients_are_those_of_autograd(scaling, out, width, squared_at_a_time, monkeypatch):
    monkeypatch.setattr(regularizer_module, "SQUARED_ON_CPU", squared_at_a_time)
    layers = [(draw(out, width, seed=i), draw(2, width, seed=i + 10), draw(out, 2, seed=i + 20)) for i in range(2)]
    found = computed(*(torch.stack(parts) for parts in zip(*layers, strict=True)), scaling)
    for layer, (w, a, b) in enumerate(layers):
        expected = built(w, a.requires_grad_(), b.requires_grad_(), scaling)
        right = [expected.detach(), *torch.autograd.grad(expected, [a, b])]
        for value, each in zip(found, right, strict=True):
            # 1e-9: float64, the difference ‖D·Dᵀ‖² − out loses some digits.
            torch.testing.assert_close(value[layer], each, rtol=1e-9, atol=1e-11)


def test_orthogonal_rows_have_the_value_zero_and_a_finite_gradient():
    w = 3 * torch.linalg.qr(draw(6, 6, seed=0))[0]
    a, b = draw(2, 6, seed=1), torch.zeros(6, 2, dtype=torch.float64)
    value, gradient_a, gradient_b = computed(w[None], a[None], b[None], 1.0)
    # The root of the rounding of a sum of 36 squares.
    assert value.item() < 1e-6
    assert gradient_a.isfinite().all()
    assert gradient_b.isfinite().all()


def test_row_of_zeros_leaves_the_gradient_finite():
    w = draw(4, 5, seed=0).float()
    w[1] = 0
    value, gradient_a, gradient_b = computed(w[None], draw(1, 2, 5, seed=1).float(), torch.zeros(1, 4, 2), 1.0)
    assert value.isfinite()
    assert gradient_a.isfinite().all()
    assert gradient_b.isfinite().all()


@pytest.fixture
def double(make_adapted):
    """A tiny encoder in float64 with four adapted layers."""
    return make_adapted().double()


def parts(model):
    for _, module, name in dora_layers(model):
        yield base_weight(module), module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def test_gradient_is_weighted_averaged_over_layers_and_added(double):
    layers = list(parts(double))
    assert len(layers) == 4
    leaves = [leaf for _, a, b, _ in layers for leaf in (a, b)]
    total = torch.stack([built(*layer) for layer in layers]).mean()
    expected = torch.autograd.grad(total, leaves)
    for position, leaf in enumerate(leaves):
        # Some have a gradient already, some have none.
        leaf.grad = torch.full_like(leaf, 2.0) if position % 3 else None
    value = OrthogonalityRegularizer(double).add_gradient(0.3, 0)
    # 1e-9: as above.
    torch.testing.assert_close(value, total.detach(), rtol=1e-9, atol=0)
    for position, (leaf, gradient) in enumerate(zip(leaves, expected, strict=True)):
        before = 2.0 if position % 3 else 0.0
        torch.testing.assert_close(leaf.grad, before + 0.3 * gradient, rtol=1e-9, atol=1e-11)


def test_base_weights_in_bfloat16_are_regularized_in_float32(make_adapted):
    model = make_adapted()
    for _, module, _ in dora_layers(model):
        module.get_base_layer().to(torch.bfloat16)
    expected = torch.stack([built(weight.float(), a, b, scaling) for weight, a, b, scaling in parts(model)]).mean()
    # 1e-4: the difference ‖D·Dᵀ‖² − out in float32.
    torch.testing.assert_close(
        OrthogonalityRegularizer(model).add_gradient(1.0, 0), expected.detach(), rtol=1e-4, atol=0
    )


def test_adapter_in_bfloat16_is_regularized_in_float32(make_adapted):
    model = make_adapted().to(torch.bfloat16)
    layers = [(weight.float(), a.float(), b.float(), scaling) for weight, a, b, scaling in parts(model)]
    expected = torch.stack([built(*layer) for layer in layers]).mean()
    # 1e-4: as above.
    torch.testing.assert_close(
        OrthogonalityRegularizer(model).add_gradient(1.0, 0), expected.detach(), rtol=1e-4, atol=0
    )
    gradients = [leaf.grad for _, a, b, _ in parts(model) for leaf in (a, b)]
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}


def test_nothing_but_the_direction_gets_a_gradient(double):
    OrthogonalityRegularizer(double).add_gradient(1.0, 0)
    reached = {name for name, parameter in double.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in double.named_parameters() if "lora_A" in name or "lora_B" in name}


def test_descent_makes_the_rows_more_orthogonal(double):
    regularizer = OrthogonalityRegularizer(double)
    optimizer = torch.optim.SGD([leaf for _, a, b, _ in parts(double) for leaf in (a, b)], lr=0.01)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        values.append(regularizer.add_gradient(1.0, 0).item())
        optimizer.step()
    assert values[-1] < values[0]


def test_drawn_rows_stand_for_all_in_expectation():
    w, a, b = draw(6, 5, seed=0), draw(2, 5, seed=1), draw(6, 2, seed=2)
    drawn = [list(rows) for rows in combinations(range(6), 3)]
    squares = [(built(w[rows], a, b[rows], 2.0) / share_of_rows(3, 6)) ** 2 for rows in drawn]
    # 1e-9: as above.
    torch.testing.assert_close(torch.stack(squares).mean(), built(w, a, b, 2.0) ** 2, rtol=1e-9, atol=0)


def test_layer_of_many_rows_gets_the_gradient_of_those_that_are_drawn(double, monkeypatch):
    monkeypatch.setattr(regularizer_module, "MOST_ROWS", 5)
    monkeypatch.setattr(regularizer_module, "DRAWN_ROWS", 4)
    layers = list(parts(double))
    values = []
    for weight, a, b, scaling in layers:
        rows = drawn_rows(len(b), 7)
        assert len(rows) == 4 < len(b)
        values.append(built(weight[rows], a, b[rows], scaling) / share_of_rows(4, len(b)))
    total = torch.stack(values).mean()
    leaves = [leaf for _, a, b, _ in layers for leaf in (a, b)]
    expected = torch.autograd.grad(total, leaves)
    value = OrthogonalityRegularizer(double).add_gradient(0.3, 7)
    torch.testing.assert_close(value, total.detach(), rtol=1e-9, atol=0)
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, 0.3 * gradient, rtol=1e-9, atol=1e-11)


def test_rows_are_drawn_by_the_step_alone():
    assert drawn_rows(2000, 3).tolist() == drawn_rows(2000, 3).tolist()
    assert drawn_rows(2000, 3).tolist() != drawn_rows(2000, 4).tolist()
    assert len(set(drawn_rows(2000, 3).tolist())) == regularizer_module.DRAWN_ROWS


def test_nothing_of_a_layer_of_many_rows_is_kept(double, monkeypatch):
    monkeypatch.setattr(regularizer_module, "MOST_ROWS", 5)
    assert [gram for _, gram in OrthogonalityRegularizer(double)._groups] == [None]


@pytest.mark.parametrize("out", [1, 64])
def test_orthonormal_rows_in_float32_leave_the_gradient_small(out):
    w = torch.linalg.qr(draw(64, 64, seed=0))[0][:out].float()
    value, gradient_a, gradient_b = computed(w[None], draw(1, 2, 64, seed=1).float(), torch.zeros(1, out, 2), 1.0)
    assert value.item() < 1e-2
    # The root of the rounding of float32; before, its reciprocal.
    assert gradient_b.abs().max() < 0.1
    assert gradient_a.abs().max() < 0.1


def test_frozen_adapter_is_left_out(double):
    for name, parameter in double.named_parameters():
        if "query" in name:
            parameter.requires_grad_(False)
    OrthogonalityRegularizer(double).add_gradient(1.0, 0)
    reached = {name for name, parameter in double.named_parameters() if parameter.grad is not None}
    assert reached
    assert not any("query" in name for name in reached)
