"""Two processes are one also in float32, on a pretrained encoder: MiniLM, 20 search steps (contract 8).

Adam divides a gradient by the root of what it has seen, and so makes a whole step of one that is nothing but rounding:
one process that takes its batches in two parts ends up to 2e-3 from itself. What is asserted is therefore: 1e-5 at most
where the steps are linear in the gradient; through Adam, 1e-5 at most from one process that adds the same two parts up,
and 1e-5 in the mean from one that takes its batches whole.
"""

from typing import Any

import minilm_works
import pytest
import torch
from launching import run_ranks
from torch import Tensor

# The upper optimiser is always Adam: with so large an epsilon, to which no gradient comes near, it is linear too.
LINEAR = {"optim": "sgd", "learning_rate": 1.0, "adam_epsilon": 1.0, "upper_learning_rate": 5.0}
WHOLE: dict[str, dict[str, Any]] = {
    "linear": {**LINEAR, "per_device_train_batch_size": 8},
    "adam": {"per_device_train_batch_size": 8},
    "adam in two parts": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
}
HALVES = {name: {**WHOLE[name], "per_device_train_batch_size": 4} for name in ("linear", "adam")}
pytestmark = pytest.mark.slow
WAYS = {"whole": False, "sharded": True}
TOLERANCE = 1e-5
LOSS: dict[str, float] = {"rel": TOLERANCE, "abs": 0.0}
# A difference of two gradients over a short step multiplies their rounding.
NEAR: dict[str, dict[str, float]] = {"hypergradient_norm": {"rel": 1e-4}, "direct_implicit_cosine": {"abs": 1e-4}}
LEVELS = ("direction", "magnitude", "head")
each_way = pytest.mark.parametrize("way", WAYS)
each_name = pytest.mark.parametrize("name", HALVES)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return minilm_works.train_all(tmp_path_factory.mktemp("one"), WHOLE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return {
        way: run_ranks(minilm_works.train_all, tmp_path_factory.mktemp(way), HALVES, sharded)
        for way, sharded in WAYS.items()
    }


@each_way
def test_two_processes_equal_one_where_steps_are_linear_in_the_gradient(way, one, two) -> None:
    for found in two[way]:
        for level, apart in differences(found["linear"]["values"], one["linear"]["values"]).items():
            assert apart.max() <= TOLERANCE, level


@each_way
def test_two_processes_equal_one_that_adds_the_same_parts_up_through_adam(way, one, two) -> None:
    for found in two[way]:
        for level, apart in differences(found["adam"]["values"], one["adam in two parts"]["values"]).items():
            assert apart.max() <= TOLERANCE, level  # measured: the same bits


@each_way
def test_two_processes_equal_one_in_the_mean_through_adam(way, one, two) -> None:
    for found in two[way]:
        for level, apart in differences(found["adam"]["values"], one["adam"]["values"]).items():
            assert apart.mean() <= TOLERANCE, level


@each_way
@each_name
def test_two_processes_log_and_classify_as_one(way, name, one, two) -> None:
    for found in two[way]:
        for expected, entry in zip(one[name]["logs"], found[name]["logs"], strict=True):
            assert entry == {key: pytest.approx(value, **NEAR.get(key, LOSS)) for key, value in expected.items()}
        torch.testing.assert_close(found[name]["logits"], one[name]["logits"], rtol=0, atol=TOLERANCE)


@each_way
@each_name
def test_both_ranks_hold_the_same_bits(way, name, two) -> None:
    first, second = (found[name]["values"] for found in two[way])
    assert all(torch.equal(second[parameter], value) for parameter, value in first.items())


@each_name
def test_what_is_compared_was_trained(name, one) -> None:
    moved = differences(one[name]["values"], one[name]["before"])
    for level, apart in moved.items():
        assert apart.max() > 1000 * TOLERANCE, level


def differences(values: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return how far each number is from what is expected, by level."""
    parts: dict[str, list[Tensor]] = {level: [] for level in LEVELS}
    for name, value in expected.items():
        level = "head" if "modules_to_save" in name else "magnitude" if "magnitude" in name else "direction"
        parts[level].append((values[name] - value).abs().flatten())
    return {level: torch.cat(each) for level, each in parts.items()}
