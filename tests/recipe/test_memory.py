"""The peak is in bytes and never falls."""

import resource
from types import SimpleNamespace

import pytest
import torch

from peft_bidora.recipe import memory
from peft_bidora.recipe.memory import peak_memory_bytes

MIB = 2**20


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is then that of the device")
def test_peak_grows_by_what_is_taken_and_stays() -> None:
    before = peak_memory_bytes()
    taken = bytearray(before)  # more than there was, so that a new peak is reached
    taken[::4096] = b"x" * len(taken[::4096])
    after = peak_memory_bytes()
    assert after >= before + len(taken) / 2
    assert before > 50 * MIB  # Python with torch; in KiB it would be a thousandth
    del taken
    assert peak_memory_bytes() >= after


@pytest.mark.parametrize(("platform", "expected"), [("linux", 7 * 1024), ("darwin", 7)])
def test_unit_of_the_system_becomes_bytes(platform: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=7))
    assert peak_memory_bytes() == expected


def test_peak_of_a_device_is_that_of_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    assert peak_memory_bytes() == 5
