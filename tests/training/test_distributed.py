"""Several processes are one: two that meet over gloo, each with half of every batch (contract 8)."""

from typing import Any

import pytest
import rank_works
import torch
from launching import run_ranks

ESTIMATORS = ["finite-difference", "one-sided", "exact", "first-order", "pbgd-free"]
SCENARIOS: dict[str, dict[str, Any]] = {
    **{name: {"hypergradient": name} for name in ESTIMATORS},
    "adam": {"xi": "adam", "max_grad_norm": 0.1},
    **{kind: {"kind": kind, "max_steps": 6, "retrain_max_steps": 3} for kind in rank_works.LOSSES},
}
# A batch of one process has 8 rows; of two, those of odd places pass theirs at once and the others in two parts.
WHOLE = {name: {**options, "per_device_train_batch_size": 8} for name, options in SCENARIOS.items()}
HALVES = {
    name: {**options, "per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
    for place, (name, options) in enumerate(SCENARIOS.items())
    for parts in (1 + place % 2,)
}


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
            # float64 sums in another order, through the steps of Adam; transformers takes gpt2's loss in float32.
            tolerance = 1e-4 if name == "shifted tokens" else 1e-10
            torch.testing.assert_close(found[name]["values"][parameter], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SCENARIOS)
def test_ranks_hold_the_same_bits(name, two) -> None:
    first, second = (found[name]["values"] for found in two)
    assert all(torch.equal(second[parameter], value) for parameter, value in first.items())


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_rank_logs_what_one_process_logs(name, one, two) -> None:
    for found in two:
        for expected, entry in zip(one[name]["logs"], found[name]["logs"], strict=True):
            # A training log adds float32 losses up.
            assert entry == pytest.approx(expected, rel=1e-4 if name == "shifted tokens" else 1e-5)


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(rank_works.train_with_dropout, tmp_path_factory.mktemp("dropped"))


def test_ranks_hold_the_same_bits_after_a_search_with_dropout(dropped) -> None:
    first, second = (found["values"] for found in dropped)
    assert all(torch.equal(second[parameter], value) for parameter, value in first.items())


def test_dropout_is_paired_within_a_rank_and_differs_between_them(dropped) -> None:
    assert all(found["replayed"] == [[True, True]] * 25 for found in dropped)  # at each second of 50 steps
    first, second = (found["seeds"] for found in dropped)
    assert len({*first.values(), *second.values()}) == 4  # two ranks, two phases


def test_passes_of_the_upper_step_go_round_the_wrapper(dropped) -> None:
    for found in dropped:
        assert found["reduced"] == len(found["lower"]) + len(found["retrain"])


@pytest.mark.parametrize(("level", "seeds"), [("lower", [0]), ("upper", [1]), ("retrain", [0, 1])])
def test_ranks_read_disjoint_rows_of_their_level_each_once_an_epoch(level, seeds, dropped) -> None:
    first, second = (found[level] for found in dropped)
    names = list(rank_works.COUNTS)
    expected = {
        tuple(row["input_ids"])
        for seed in seeds
        for row in rank_works.rows("rows", rank_works.COUNTS[names[seed]], seed)
    }
    epoch = -(-len(expected) // 8)  # batches
    assert len(first) == len(second) >= epoch
    for start in range(0, len(first) - epoch + 1, epoch):
        read = [row for rank in (first, second) for batch in rank[start : start + epoch] for row in batch]
        assert len(read) == len(expected)
        assert set(map(_unpadded, read)) == expected


def _unpadded(row: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(each for each in row if each)
