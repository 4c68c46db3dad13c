"""Find the newest checkpoint that is whole."""

import json
import logging
import re
from pathlib import Path
from zipfile import ZipFile

import torch
from safetensors import safe_open
from transformers import TrainerState

logger = logging.getLogger(__name__)
STATE = "trainer_state.json"


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint below a folder; one that is not is named in a warning and passed over.

    A checkpoint is complete when it has all that an exact resume needs, and whole when each of its files can be read.
    Trainer writes `trainer_state.json` last.

    Args:
        folder: holds `checkpoint-STEP` folders, or does not exist.
    """
    steps = {}
    for path in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            steps[int(match.group(1))] = path
    refused = False
    for step in sorted(steps, reverse=True):
        fault = _fault(steps[step])
        if fault is None:
            if refused:
                logger.warning("Falling back to the checkpoint before it: %s", steps[step])
            return steps[step]
        logger.warning("%s; it is not used.", fault)
        refused = True
    return None


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimiser step that a checkpoint folder was written at."""
    return int(checkpoint.name.rpartition("-")[2])


def read_state(checkpoint: Path) -> TrainerState:
    """Return the state of training that a checkpoint was written at."""
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / STATE))
    return state


def _fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    # Without one of the last three a run would go on, but not where it stopped.
    for pattern in (STATE, "*.safetensors", "optimizer.*", "scheduler.pt", "rng_state*.pth"):
        if not any(checkpoint.glob(pattern)):
            return f"The checkpoint {checkpoint} is incomplete: it has no {pattern}"
    for path in sorted(checkpoint.iterdir()):
        try:
            _read(path)
        except Exception as error:  # whatever a truncated file makes its reader raise
            return f"The checkpoint file {path} is corrupt ({type(error).__name__})"
    return None


def _read(path: Path) -> None:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                weights.get_tensor(key)
    elif path.name == STATE:
        if read_state(path.parent).max_steps < 1:
            raise ValueError("max_steps is not set")
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".pth":  # states of other generators than torch's, which must not be unpickled to be checked
        with ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(broken)
    elif path.suffix == ".pt":
        torch.load(path, map_location="cpu", weights_only=True)
