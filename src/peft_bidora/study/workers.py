"""Who works on a study: each process holds a folder of its own in it.

The system ends a hold with its process, however that ends, so that a folder which nobody holds was left by a kill.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from peft_bidora.errors import InUseError
from peft_bidora.recipe.output import held, in_use


@contextmanager
def working(output: Path, name: str) -> Iterator[Path]:
    """Hold the first folder NAME-0, NAME-1, ... that no other process has; it is removed once it is empty."""
    with ExitStack() as stack:
        for number in count():
            path = output / f"{name}-{number}"
            with suppress(InUseError):
                stack.enter_context(held(path))
                break
        yield path  # outside of what is suppressed: an error of the work is its own


def is_worked_on(output: Path, name: str) -> bool:
    """Return whether a process holds such a folder now."""
    return any(in_use(path) for path in output.glob(f"{name}-*"))


def sweep(output: Path, name: str) -> None:
    """Remove the folders that killed processes left."""
    for path in output.glob(f"{name}-*"):
        with suppress(InUseError), held(path):
            for left in path.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
