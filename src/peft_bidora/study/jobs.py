"""Processes that train: each its own memory, a few at once, ended with the one that started them."""

import multiprocessing
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from peft_bidora.errors import BiDoRAError

Tell = Callable[[str, int, int, list[float]], None]  # as training.lanes.Watch
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """Work for a process.

    Args:
        label: what it is called.
        work: takes what reports progress, and `arguments`; found by its name in a new interpreter.
        arguments: of it, picklable.
        log: a file to which is added what it writes to standard output and error.
        folder: where it writes, which it holds.
    """

    label: str
    work: Callable[..., None]
    arguments: tuple[Any, ...]
    log: Path
    folder: Path


def run_jobs(
    jobs: Sequence[Job], at_once: int, watch: Callable[[str, str, int, int, list[float]], None]
) -> dict[str, BiDoRAError]:
    """Run jobs, each in a process of its own; return the error of each that failed, by its label.

    A job that fails leaves the others alone. The processes end with this one, however it ends.

    Args:
        jobs: in the order in which they start.
        at_once: how many run side by side; they share the cores.
        watch: is told label, phase, step, steps and the best metrics; at a job's end the phase is "done" or "failed".
    """
    context = multiprocessing.get_context("spawn")  # torch does not outlive a fork with threads
    waiting, running, failed = list(jobs), dict[str, _Running](), dict[str, BiDoRAError]()

    def listen(job: _Running) -> None:
        with suppress(EOFError, OSError, pickle.UnpicklingError):  # it ended, perhaps in the middle of a message
            while job.told.poll():
                event = job.told.recv()
                if isinstance(event, BiDoRAError):
                    failed[job.label] = event
                else:
                    watch(job.label, *event)

    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[job.label] = _begin(context, job, at_once)
            wait([active.process.sentinel for active in running.values()], timeout=POLL_SECONDS)
            for active in list(running.values()):
                ended = not active.process.is_alive()
                listen(active)
                if not ended:
                    continue
                active.process.join()
                del running[active.label]
                if active.process.exitcode and active.label not in failed:
                    failed[active.label] = BiDoRAError(_ending(active))
                watch(active.label, "failed" if active.label in failed else "done", 1, 1, [])
    finally:
        for active in running.values():
            active.process.terminate()
            active.process.join()
    return failed


@dataclass(frozen=True)
class _Running:
    """A job whose process was started."""

    label: str
    log: Path
    process: Any
    told: Connection


def _begin(context: Any, job: Job, at_once: int) -> _Running:
    reader, writer = context.Pipe(duplex=False)  # its own: a process that is killed leaves no lock of others taken
    # In bytes: what imports the heavy libraries is found once they are quiet.
    work = pickle.dumps((job.work, job.arguments))
    process = context.Process(target=_work, args=(job.label, job.log, work, writer, at_once), daemon=True)
    process.start()
    writer.close()
    return _Running(job.label, job.log, process, reader)


def _ending(job: _Running) -> str:
    code = job.process.exitcode
    how = f"was ended by the signal {-code}" if code < 0 else f"ended with code {code}"
    hint = " A lack of memory does that: lower batch_size or --jobs, or set --at-once." if code == -9 else ""
    return f"{job.label}: its process {how}; what it said is in {job.log}.{hint} Go on by --resume."


def _work(label: str, log: Path, pickled: bytes, told: Connection, at_once: int) -> None:
    """Do the work of a job in this process, on its share of the threads."""
    with log.open("ab") as file:  # also what libraries write beneath Python; the terminal is the parent's
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from peft_bidora.quiet import quiet_libraries

    quiet_libraries()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // at_once))  # what the user's OMP_NUM_THREADS allows
    try:
        work, arguments = pickle.loads(pickled)  # of the parent process
        work(lambda *event: told.send(event), *arguments)
    except BiDoRAError as error:
        told.send(type(error)(*(f"{label}: {fault}" for fault in error.faults)))
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:  # told by the parent, which may have other jobs to end well
        where = traceback.format_exc(limit=-3)
        told.send(BiDoRAError(f"{label}: {type(error).__name__}: {error}\n{where}"))
    told.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
