"""The file in which lanes are kept, to go on after a kill."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from peft_bidora.errors import CheckpointError


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that a kill leaves the old file or the new one, and a full disk the old one alone."""
    partial_path = path.with_name(path.name + ".partial")
    try:
        torch.save(dict(state), partial_path)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return what was written to a checkpoint; None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}). Remove it: its lanes are then trained from the beginning."
        ) from error
    return state
