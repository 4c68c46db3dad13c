"""The output folder while a run writes in it: kept from other processes, and what the disk refuses is told."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peft_bidora.errors import CheckpointError, InUseError, ProcessError, RecipeError

LOCK = ".lock"
ATTEMPTS = 10


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes of ours out of it.

    The lock is the system's: it ends with this process, however that ends. A folder that is still empty afterwards is
    removed.

    Raises:
        InUseError: another process holds the folder.
        RecipeError: it cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        for attempt in range(ATTEMPTS):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
                break
            except FileNotFoundError:  # another process, which ended in it, has just removed the folder
                if attempt == ATTEMPTS - 1:
                    raise
    except Timeout:
        raise InUseError(
            f"output={folder} is in use: another process trains there. Wait until it ends, or name another output."
        ) from None
    except OSError as error:
        raise RecipeError(_unwritable(folder, error.strerror or str(error))) from error
    try:
        yield
    finally:
        with suppress(OSError):  # of no matter: a folder with a lock alone counts as empty
            if all(path.name == LOCK for path in folder.iterdir()):
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.release()


def in_use(folder: Path) -> bool:
    """Return whether a process of ours, on this machine or on another that sees the folder, holds it now."""
    if not folder.is_dir():
        return False
    try:
        with held(folder):
            return False
    except InUseError:
        return True


def check_writable(folder: Path) -> None:
    """Raise RecipeError if a folder cannot be made or written in, as far as that shows without trying."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise RecipeError(_unwritable(folder, f"{nearest} is a file"))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RecipeError(_unwritable(folder, f"{nearest} may not be written in"))


def disk_reason(error: Exception) -> str | None:
    """Return what the system said, also through the libraries that hide its error; None for an error of another kind.

    A torch.save that cannot write raises RuntimeError, by the name of a writer or of a stream, and safetensors a type
    of its own.
    """
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}"
    text = " ".join(str(error).split())
    told_by_torch = any(word in text.lower() for word in ("stream", "inline_container"))
    if type(error).__name__ == "SafetensorError" or (isinstance(error, RuntimeError) and told_by_torch):
        return text[:300]
    return None


@contextmanager
def disk_faults(folder: Path, option: str = "--resume") -> Iterator[None]:
    """Turn what a full or broken disk raises during a run into a message.

    Args:
        folder: of the run.
        option: what goes on from there.

    Raises:
        CheckpointError: a file could not be written or read.
    """
    try:
        yield
    except Exception as error:
        reason = disk_reason(error)
        if reason is None:
            raise
        raise CheckpointError(
            f"The run in {folder} stopped: {reason}. What was computed is kept. Mend that (a full disk needs room),"
            f" then give the same command with {option}."
        ) from error


@contextmanager
def lost_processes(folder: Path) -> Iterator[None]:
    """Turn what an all-reduce raises when another process is gone into a message.

    Args:
        folder: of the run.

    Raises:
        ProcessError: another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if not isinstance(error, DistError) and "gloo" not in str(error):  # gloo raises no type of its own
            raise
        reason = " ".join(str(error).split())[:200]
        raise ProcessError(
            f"The run in {folder} stopped: another of its processes ended, or is not to be reached ({reason}). What was"
            " computed is kept. See what that one said, then give the same command with --resume."
        ) from error


def _unwritable(folder: Path, reason: str) -> str:
    return f"output={folder} cannot be written: {reason}. Name another output, or mend that."
