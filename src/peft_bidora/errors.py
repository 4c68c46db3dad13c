"""The one tree of errors: each message says what was expected, what came and what to do."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class BiDoRAError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        *faults: one sentence or more each; several faults of one input are reported together.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults

    def __reduce__(self) -> tuple[type["BiDoRAError"], tuple[str, ...]]:
        return type(self), self.faults  # an error of another process comes with its faults apart


class RecipeError(BiDoRAError):
    """A recipe has an unknown key, a value of the wrong type, or values that contradict each other."""


class DataError(BiDoRAError):
    """A data file cannot be read, or a row of it is not what the task needs."""


class SplitError(BiDoRAError):
    """The rows cannot be divided into the four splits that were asked for."""


class ModelError(BiDoRAError):
    """A model cannot be found, is not a model, or does not fit the task or the engine."""


class AdapterError(BiDoRAError):
    """An adapter cannot be attached, saved, loaded or merged."""


class CheckpointError(BiDoRAError):
    """A run or a checkpoint cannot be resumed."""


class NonFiniteError(BiDoRAError):
    """A loss or a gradient of the bi-level problem is infinite or not a number."""


class InUseError(RecipeError):
    """Another process of ours trains in a folder."""


class ProcessError(BiDoRAError):
    """Another process of a run ended before the run did."""


class Faults:
    """Run checks that do not depend on one another, keep what they raise, and raise it at once."""

    def __init__(self) -> None:
        self._found: list[BiDoRAError] = []

    def check(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what a function returns, or None where it raised an error of ours, which is kept."""
        try:
            return function(*args, **kwargs)
        except BiDoRAError as error:
            self.add(error)
            return None

    def add(self, error: BiDoRAError) -> None:
        """Keep an error."""
        self._found.append(error)

    def raise_any(self) -> None:
        """Raise the faults that were kept, if there are any: as their own type where all are of one."""
        if self._found:
            kind = type(self._found[0]) if len({type(error) for error in self._found}) == 1 else BiDoRAError
            raise kind(*dict.fromkeys(fault for error in self._found for fault in error.faults))
