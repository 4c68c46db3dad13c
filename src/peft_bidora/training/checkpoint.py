"""Find the newest checkpoint that is whole."""

import json
import logging
import re
from pathlib import Path

import torch
from safetensors import safe_open

logger = logging.getLogger(__name__)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint below a folder; one that is not is named in a warning and passed over.

    A checkpoint is complete when `trainer_state.json` is there, which Trainer writes last, and whole when each of its
    files can be read.

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


def _fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    if not (checkpoint / "trainer_state.json").is_file():
        return f"The checkpoint {checkpoint} is incomplete: it has no trainer_state.json"
    if not any(checkpoint.glob("*.safetensors")):
        return f"The checkpoint {checkpoint} is incomplete: it has no weights"
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
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix in (".pt", ".pth") and path.name != "rng_state.pth":
        torch.load(path, map_location="cpu", weights_only=True)
