"""Freed memory goes back to the system, and nothing else changes."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from peft_bidora.adapter import attach, freed, regularizer
from peft_bidora.adapter.freed import give_back_freed


def held_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="malloc_trim is glibc's"
)
def test_gaps_between_small_tensors_go_back_to_the_system() -> None:
    tensors = [torch.ones(2**14) for _ in range(2000)]  # 64 KiB each
    kept = tensors[1::2]
    del tensors
    before = held_mib()
    give_back_freed()
    assert before - held_mib() > 40
    assert all(bool((each == 1).all()) for each in kept)


def test_adapter_is_the_same_to_the_bit_whether_freed_memory_is_given_back(make_adapted, monkeypatch) -> None:
    def made() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = make_adapted()
        grams = [gram for _, gram in regularizer.OrthogonalityRegularizer(model)._groups]
        return [*model.state_dict().values(), *grams]

    given_back = made()
    for module in (attach, regularizer):
        monkeypatch.setattr(module, "give_back_freed", lambda: None)
    assert all(torch.equal(one, other) for one, other in zip(given_back, made(), strict=True))


def test_it_is_given_back_after_attaching_and_after_the_products_of_rows(make_adapted, monkeypatch) -> None:
    given = []
    for module in (attach, regularizer):
        monkeypatch.setattr(module, "give_back_freed", lambda name=module.__name__: given.append(name))
    regularizer.OrthogonalityRegularizer(make_adapted())
    assert given == [attach.__name__, regularizer.__name__]


def test_c_library_without_a_trim_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(freed.ctypes, "CDLL", lambda name: object())
    give_back_freed()
