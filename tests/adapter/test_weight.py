"""The row norm in closed form, against the built weight."""

import pytest
import torch

from peft_bidora.adapter.weight import low_rank_factors, row_norm


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scaling", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("out", "width"), [(5, 5), (3, 8), (8, 3)])
def test_row_norm_and_its_gradients_are_those_of_the_built_direction(scaling, out, width):
    w, a, b = draw(out, width, seed=0), draw(2, width, seed=1).requires_grad_(), draw(out, 2, seed=2).requires_grad_()
    found = row_norm(w.square().sum(dim=1), w @ a.T, a, b, scaling)
    expected = (w + scaling * b @ a).norm(dim=1)
    # Float64; the squares are summed in another order.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    weights = draw(out, seed=3)
    for one, other in zip(
        torch.autograd.grad(found @ weights, [a, b]), torch.autograd.grad(expected @ weights, [a, b]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_row_norm_of_a_row_that_cancels_is_a_finite_number():
    a, b = draw(1, 4, seed=0), draw(3, 1, seed=1)
    w = -2.0 * b @ a
    found = row_norm(w.square().sum(dim=1), w @ a.T, a, b, 2.0)
    # Rounding of the three terms, each of the order of one: the root of 1e-15.
    assert found.isfinite().all()
    assert (found < 1e-6).all()
    assert (found > 0).all()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_rank_factors_are_the_nearest_of_their_rank(rank):
    change = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b, error = low_rank_factors(change, rank)
    singular = torch.linalg.svdvals(change)
    # Float64 rounding of a product of factors of size one.
    assert (change - b @ a).norm().item() == pytest.approx(singular[rank:].norm().item(), abs=1e-12)
    assert error == pytest.approx((singular[rank:].norm() / change.norm()).item(), abs=1e-12)
    assert (a.shape, b.shape) == ((rank, 6), (4, rank))


def test_no_change_has_no_error():
    assert low_rank_factors(torch.zeros(3, 3), 1)[2] == 0.0
