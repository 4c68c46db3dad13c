"""The one tree of errors: each message says what was expected, what came and what to do."""


class BiDoRAError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        *faults: one sentence or more each; several faults of one input are reported together.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


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
