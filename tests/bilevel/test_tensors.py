"""Linear algebra over tuples of tensors, against the same on one long vector."""

import pytest
import torch

from peft_bidora.bilevel.tensors import add_scaled, cosine, dot, norm


def draw(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3), (4,), (1,), ())]


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_results_are_those_of_one_long_vector():
    left, right = draw(0), draw(1)
    a, b = flat(left), flat(right)
    # 1e-12: a few additions in another order.
    torch.testing.assert_close(dot(left, right), a @ b, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm(left), a.norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(cosine(left, right), (a @ b) / (a.norm() * b.norm()), rtol=1e-12, atol=0)
    torch.testing.assert_close(flat(add_scaled(left, right, -2.5)), a - 2.5 * b, rtol=1e-12, atol=0)
    torch.testing.assert_close(flat(add_scaled(left, right, torch.tensor(0.5))), a + 0.5 * b, rtol=1e-12, atol=0)


def test_cosine_of_parallel_and_opposite_is_one_and_minus_one():
    left = draw(0)
    # 1e-12: rounding of the two norms.
    assert cosine(left, [3 * part for part in left]).item() == pytest.approx(1.0, abs=1e-12)
    assert cosine(left, [-part for part in left]).item() == pytest.approx(-1.0, abs=1e-12)


def test_cosine_of_zero_is_zero():
    left, zero = draw(0), [torch.zeros_like(part) for part in draw(0)]
    assert cosine(left, zero).item() == cosine(zero, left).item() == cosine(zero, zero).item() == 0.0


@pytest.mark.parametrize("function", [dot, cosine, lambda a, b: add_scaled(a, b, 1.0)])
def test_tuples_of_two_lengths_are_refused(function):
    with pytest.raises(ValueError, match="shorter"):
        function(draw(0), draw(0)[:-1])
