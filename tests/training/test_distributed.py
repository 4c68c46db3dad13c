"""Several processes are one: two that meet over gloo, each with half of every batch (contract 8)."""

from pathlib import Path
from typing import Any

import pytest
import rank_works
import torch
from launching import run_ranks

ESTIMATORS = ["finite-difference", "one-sided", "exact", "first-order", "pbgd-free"]
SCENARIOS: dict[str, dict[str, Any]] = {
    **{name: {"hypergradient": name} for name in ESTIMATORS},
    "adam": {"xi": "adam", "max_grad_norm": 0.1},
    "accumulation": {"gradient_accumulation_steps": 2},
}
# Rows a pass of one process, of all its rows, and of each of two.
WHOLE = {name: {**options, "per_device_train_batch_size": 8} for name, options in SCENARIOS.items()}
HALVES = {
    name: {**options, "per_device_train_batch_size": 2 if name == "accumulation" else 4}
    for name, options in SCENARIOS.items()
}
WHOLE["accumulation"]["gradient_accumulation_steps"] = 1


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return rank_works.train_all(tmp_path_factory.mktemp("one"), WHOLE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(rank_works.train_all, tmp_path_factory.mktemp("two"), HALVES)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_on_half_batches_equal_one_on_whole_batches(name, one, two) -> None:
    for found in two:
        for parameter, value in one[name]["values"].items():
            # float64 sums in another order, through 20 steps of Adam and 8 more.
            torch.testing.assert_close(found[name]["values"][parameter], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_hold_the_same_bits(name, two) -> None:
    first, second = (found[name]["values"] for found in two)
    assert all(torch.equal(second[parameter], value) for parameter, value in first.items())


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_rank_logs_what_one_process_logs(name, one, two) -> None:
    for found in two:
        for expected, entry in zip(one[name]["logs"], found[name]["logs"], strict=True):
            # A training log adds float32 losses up.
            assert entry == pytest.approx(expected, rel=1e-5)
