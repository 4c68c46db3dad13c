"""The gradient primitive and the exact mixed product."""

import pytest
import torch

from peft_bidora.bilevel.gradients import loss_and_gradient, mixed_product


def leaves(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def test_micro_batches_add_up_to_the_whole_batch():
    (w,) = leaves((3,))
    (x,) = leaves((6, 3))
    x = x.detach()
    losses = [lambda part=part: (torch.tanh(part @ w) ** 2).sum() / 6 for part in x.split([1, 2, 3])]
    value, (gradient,) = loss_and_gradient(losses, [w])
    whole = (torch.tanh(x @ w) ** 2).mean()
    # 1e-12: the sum is taken in another order.
    torch.testing.assert_close(value, whole.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, w)[0], rtol=1e-12, atol=0)
    assert not value.requires_grad


def test_no_grad_attribute_is_written():
    w, v = leaves((3,), (2,))
    v.grad = torch.ones_like(v)
    loss_and_gradient([lambda: (w**2).sum() + v.sum()], [w, v])
    assert w.grad is None
    assert torch.equal(v.grad, torch.ones_like(v))


def test_unreached_parameter_gets_zeros():
    w, unreached = leaves((3,), (2, 2))
    _, (_, gradient) = loss_and_gradient([lambda: (w**2).sum()], [w, unreached])
    assert torch.equal(gradient, torch.zeros_like(unreached))


def test_no_loss_is_an_error():
    (w,) = leaves((3,))
    with pytest.raises(ValueError, match="losses is empty; expected one closure for each micro-batch"):
        loss_and_gradient([], [w])


def test_mixed_product_equals_the_block_of_the_hessian():
    m, v, w = leaves((4,), (4, 3), (3,))
    x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)

    def loss(m: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.tanh((x * w) @ v.T * m).pow(2).sum()

    vector = [torch.sin(torch.arange(12.0, dtype=torch.float64)).reshape(4, 3), torch.ones(3, dtype=torch.float64)]
    blocks = torch.autograd.functional.hessian(loss, (m, v, w))[0]
    expected = (blocks[1] * vector[0]).sum(dim=(1, 2)) + blocks[2] @ vector[1]
    # Two micro-batches, a third and two thirds of the loss.
    losses = [lambda: loss(m, v, w) / 3, lambda: 2 * loss(m, v, w) / 3]
    (product,) = mixed_product(losses, [m], [v, w], vector)
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12)


def test_mixed_product_is_zero_where_the_levels_do_not_meet():
    m, v = leaves((4,), (3,))
    vector = [torch.ones_like(v)]
    for loss in (lambda: (m**2).sum() + (v**2).sum(), lambda: (m**2).sum() + v.sum(), lambda: (m**2).sum()):
        (product,) = mixed_product([loss], [m], [v], vector)
        assert torch.equal(product, torch.zeros_like(m))


def test_loss_that_reaches_no_parameter_has_a_gradient_of_zeros():
    (w,) = leaves((3,))
    value, (gradient,) = loss_and_gradient([lambda: torch.tensor(2.0), lambda: (w**2).sum()], [w])
    torch.testing.assert_close(value, 2 + (w.detach() ** 2).sum(), check_dtype=False)
    assert torch.equal(gradient, 2 * w.detach())
