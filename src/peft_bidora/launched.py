"""What torchrun and accelerate tell a process that they start, by the environment; needs no torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from peft_bidora.errors import RecipeError

FSDP, DEEPSPEED, MIXED_PRECISION = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION"


def count() -> int:
    """Return how many processes were started for this run; they may not have met yet.

    Raises:
        RecipeError: the environment has no number for it.
    """
    return _number("WORLD_SIZE", 1)


def is_first() -> bool:
    """Return whether this is the process that speaks for all."""
    return count() == 1 or _number("RANK", 0) == 0


def _number(name: str, default: int) -> int:
    said = os.environ.get(name) or str(default)
    if not said.isdecimal():
        raise RecipeError(f"{name}={said} in the environment: expected a whole number, as torchrun sets it. Unset it.")
    return int(said)


def wants_fsdp() -> bool:
    """Return whether accelerate and transformers would divide the weights of a model."""
    return _is_set(FSDP)


def refuse_others() -> None:
    """Raise RecipeError for what accelerate is told and a recipe cannot have; all faults.

    transformers would look for the package, or let it pass without a word.
    """
    faults = []
    if _is_set(DEEPSPEED):
        faults.append(
            f"{DEEPSPEED}: DeepSpeed steps inside of backward, where the bi-level search takes its own gradients. Start"
            " the processes with torchrun."
        )
    if (said := os.environ.get(MIXED_PRECISION, "")) in ("fp16", "fp8"):
        faults.append(
            f"{MIXED_PRECISION}={said}: two optimisers break its loss scaling. Leave --mixed_precision out, and set"
            " precision=bfloat16 in the recipe."
        )
    if faults:
        raise RecipeError(*faults)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


@contextmanager
def fsdp() -> Iterator[dict[str, str] | None]:
    """Give the `FSDP_` options by which weights are to be divided, None where they are not.

    For the time of the block accelerate and transformers do not see the wish: they would divide what is trained too,
    and load the weights on the first process alone.
    """
    if not wants_fsdp():
        yield None
        return
    asked = os.environ.pop(FSDP)
    try:
        yield {name: value for name, value in os.environ.items() if name.startswith("FSDP_")}
    finally:
        os.environ[FSDP] = asked
