"""Runs of several processes are resumed: by as many to the bit, by another number to rounding (contract 7).

Frozen weights are in no checkpoint, so that whole and sharded ones go on with each other.
"""

import shutil
from typing import Any

import pytest
import rank_works
import torch
from launching import run_ranks

PLACES = [("search", 3), ("search", 5), ("retrain", 1), ("retrain", 4)]
SHORT: dict[str, Any] = {"max_steps": 6, "retrain_max_steps": 5, "save_strategy": "steps", "eval_steps": 2}
ONE, TWO = ({**SHORT, "save_steps": 2, "per_device_train_batch_size": size} for size in (8, 4))
CUT = ("search", 5)  # in the second epoch of both levels
SHARDED = [("search", 5), ("retrain", 1)]  # of the places
WAYS = {"whole": TWO, "sharded": {**TWO, "sharded": True}}
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("resumed")
    whole = rank_works.train_from(folder / "whole", False, **ONE)
    assert rank_works.train_from(folder / "cut-by-one", False, CUT, **ONE) is None
    for way in WAYS:
        shutil.copytree(folder / "cut-by-one", folder / f"cut-by-one-{way}")
    single = {"dropout": 0.2, "dtype": torch.float32, "per_device_train_batch_size": 4}
    same = {place: {**SHORT, **single, "save_steps": 1 + place[1] % 3, "sharded": place in SHARDED} for place in PLACES}
    cut = {folder / f"cut-by-two-{way}": options for way, options in WAYS.items()}
    resumed = {folder / f"cut-by-one-{way}": options for way, options in WAYS.items()}
    two = run_ranks(rank_works.resume_all, folder / "two", same, CUT, cut, resumed)
    one = {way: rank_works.train_from(folder / f"cut-by-two-{way}", True, **ONE) for way in WAYS}
    return {"whole": whole, "two": two, "one": one}


@pytest.mark.parametrize("number", range(len(PLACES)), ids=[f"{phase}-{step}" for phase, step in PLACES])
def test_killed_run_of_two_processes_is_resumed_bit_for_bit(number: int, found) -> None:
    for rank in found["two"]:
        whole, resumed = rank["same"][number]
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@each_way
def test_one_process_goes_on_with_a_run_of_two(way: str, found) -> None:
    for name, value in found["whole"].items():
        # float64 sums in another order before the kill.
        torch.testing.assert_close(found["one"][way][name], value, rtol=1e-10, atol=1e-10)


@each_way
def test_two_processes_go_on_with_a_run_of_one(way: str, found) -> None:
    for rank in found["two"]:
        resumed = rank["resumed"][list(WAYS).index(way)]
        for name, value in found["whole"].items():
            torch.testing.assert_close(resumed[name], value, rtol=1e-10, atol=1e-10)  # as above


def test_checkpoint_is_declared_whole_once_all_processes_have_written_their_part(found) -> None:
    assert found["two"][0]["whole"] == [True] * 3
