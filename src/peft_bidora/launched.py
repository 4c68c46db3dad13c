"""What torchrun and accelerate tell a process that they start, by the environment; needs no torch."""

import os


def count() -> int:
    """Return how many processes were started for this run; they may not have met yet."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Return whether this is the process that speaks for all."""
    return count() == 1 or int(os.environ.get("RANK") or 0) == 0
