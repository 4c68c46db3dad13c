"""Gradients over several processes: what is reduced, and that it is what one process has."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import rank_works
import torch
from launching import run_ranks
from polynomial import Polynomial

from peft_bidora.bilevel.gradients import loss_and_gradient

# Of eight directions and three magnitudes, and the loss, which goes with a gradient.
REDUCED = {"central": [12, 4, 4], "one-sided": [12, 4, 4], "reused": [12, 4, 3], "exact": [12, 3]}
REDUCED |= {"first-order": [4], "value-function-free": [12]}


@pytest.mark.parametrize("name", REDUCED)
def test_perturbed_passes_reduce_the_gradients_of_magnitudes_alone(name: str) -> None:
    sizes: list[int] = []

    def counted(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        sizes.append(sum(each.numel() for each in tensors))
        return tuple(tensors)

    estimator, problem = rank_works.polynomial_problem(name, Polynomial(0.3))
    estimator(problem(reduction=counted))
    assert sizes == REDUCED[name]


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run_ranks(rank_works.estimate_all, tmp_path_factory.mktemp("estimated"), list(REDUCED))


@pytest.mark.parametrize("name", REDUCED)
def test_each_estimator_finds_on_two_processes_what_it_finds_on_one(name: str, estimated) -> None:
    estimator, problem = rank_works.polynomial_problem(name, Polynomial(0.3))
    whole = rank_works.parts_of(estimator(problem()))
    for rank in estimated:
        for part, expected in whole.items():
            # float64 sums in another order, divided by the small step of a difference.
            torch.testing.assert_close(rank[name][part], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [*REDUCED, "mean"])
def test_ranks_have_the_same_bits(name: str, estimated) -> None:
    first, second = (rank[name] for rank in estimated)
    assert first.keys() == second.keys()
    assert all(torch.equal(second[part], value) for part, value in first.items())


def test_mean_keeps_shapes_and_types(estimated) -> None:
    expected = [torch.tensor(0.5), torch.full((2, 3), 1.5, dtype=torch.bfloat16), torch.full((1,), 2.5).half()]
    for rank in estimated:
        for found, mean in zip(rank["mean"].values(), expected, strict=True):
            assert found.dtype == mean.dtype
            assert torch.equal(found, mean)


def test_one_process_reduces_nothing() -> None:
    problem = Polynomial()
    losses: list[Callable[[], torch.Tensor]] = [partial(problem.lower)]
    value, gradient = loss_and_gradient(losses, problem.magnitude)
    assert torch.equal(value, problem.lower().detach())
    assert [each.shape for each in gradient] == [each.shape for each in problem.magnitude]
