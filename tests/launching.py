"""Run a function in real processes that meet over gloo, as torchrun starts them."""

import gc
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

TIMEOUT = 240  # seconds; the processes of a test take a few


def run_ranks(work: Callable[..., Any], folder: Path, *arguments: Any, count: int = 2, **named: Any) -> list[Any]:
    """Return what a function of a module in `tests` returned in each of some ranks.

    The libraries are imported once, by a server that the ranks are forked from.
    """
    processes = start_ranks(work, folder, *arguments, count=count, **named)
    for process in processes:
        process.join(TIMEOUT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * count, codes
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(count)]


def start_ranks(work: Callable[..., Any], folder: Path, *arguments: Any, count: int = 2, **named: Any) -> list[Any]:
    """Start the ranks and return their processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rank_works", "rank_commands", "shard_works"])
    found_by = os.pathsep.join(path for path in sys.path if path)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(rank, count, port, partial(work, folder, *arguments, **named), folder))
        for rank in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", found_by)  # by which the server finds the modules, when it starts
        for process in processes:
            process.start()
    return processes


def _rank(rank: int, count: int, port: int, work: Callable[[], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # as in the tests' own process: every Trainer asks for a collection
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(work(), folder / f"returned-{rank}.pt")
