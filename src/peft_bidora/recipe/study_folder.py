"""The folder of a study of lanes: what stands in it, whether a study may start or go on there, and its groups."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from peft_bidora.errors import CheckpointError, RecipeError
from peft_bidora.recipe import folder
from peft_bidora.recipe.folder import STUDY
from peft_bidora.recipe.lane_settings import Setting, folder_name, grouped
from peft_bidora.recipe.output import LOCK
from peft_bidora.recipe.prepare import Prepared
from peft_bidora.training.lane_checkpoint import read_checkpoint, write_checkpoint

CHECKPOINTS, STOPPED = "checkpoints", "stopped.json"


def check_study(output: Path, resume: bool, overwrite: bool, marker: str = STUDY) -> None:
    """Raise unless a study may start (or, with resume, go on) in a folder.

    Args:
        output: the folder.
        resume: whether it goes on.
        overwrite: whether it replaces what is there.
        marker: the file that makes a folder such a study.

    Raises:
        RecipeError: another study, a run or other files are there.
        CheckpointError: there is no study to resume.
    """
    is_study = (output / marker).is_file()
    if resume and not is_study:
        raise CheckpointError(f"output={output} holds no study to resume. Start it without --resume.")
    if is_study and not resume and not overwrite:
        raise RecipeError(
            f"output={output} holds a study already. Go on with it by --resume, replace it by --overwrite, or name"
            " another output."
        )
    if is_study:
        return
    if folder.is_run(output):
        raise RecipeError(f"output={output} holds a single run. Name another output.")
    folder.check_output(output, resume=False, overwrite=False)


def begin_study(
    settings: Sequence[Setting], prepared: dict[str, Prepared], output: Path, resume: bool
) -> dict[str, dict[str, Any]]:
    """Make the folders of the study and of each run; return the manifest of each."""
    study = {"lanes": {setting.name: setting.values for setting in settings}}
    if resume:
        begun = folder.read_object(output / STUDY, ("lanes",))["lanes"]
        if missing := [name for name in begun if name not in prepared]:
            raise CheckpointError(
                f"The study in {output} has the lane {missing[0]} too: it is resumed with the lanes that it began with,"
                " or more. Add it, or start anew with --overwrite."
            )
    elif (output / STUDY).is_file():
        clear_runs(output)
    folder.write_json(output / STUDY, study)
    (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    manifests = {}
    for setting in settings:
        run_folder = setting.recipe.output
        if resume and is_begun(run_folder):
            manifests[setting.name] = folder.read_object(run_folder / folder.MANIFEST, ())
        else:
            manifests[setting.name] = folder.begin(prepared[setting.name], is_lane=True)
            (run_folder / STOPPED).unlink(missing_ok=True)
    return manifests


def clear_runs(output: Path, names: Sequence[str] = ()) -> None:
    """Remove what another study left in its folder: its checkpoints, and its runs; runs of other commands stay.

    Args:
        output: the folder of the study.
        names: of runs beside those that a study of lanes names.
    """
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    if (output / STUDY).is_file():
        names = [*names, *(folder_name(name) for name in folder.read_object(output / STUDY, ("lanes",))["lanes"])]
    for path in (output / name for name in dict.fromkeys(names)):
        if folder.is_run(path):
            folder.clear(path)
            for left in (STOPPED, LOCK):
                (path / left).unlink(missing_ok=True)
            if not any(path.iterdir()):
                path.rmdir()
    (output / STUDY).unlink(missing_ok=True)


def remove_checkpoints(output: Path) -> None:
    """Remove the folder of the checkpoints, which is empty once all lanes are over."""
    with suppress(OSError):
        (output / CHECKPOINTS).rmdir()


def is_begun(run_folder: Path) -> bool:
    """Return whether a run folder is whole: its recipe is the last that is written before the training."""
    return folder.is_run(run_folder) and (run_folder / folder.RECIPE).is_file()


def groups_to_train(prepared: dict[str, Prepared], output: Path, at_once: int | None) -> list[tuple[list[str], Path]]:
    """Return the groups that are still to be trained, each with its checkpoint, begun or not."""
    open_runs = {name: run for name, run in prepared.items() if not is_over(run.recipe.output)}
    begun: list[tuple[list[str], Path]] = []
    for path in sorted((output / CHECKPOINTS).glob("*.pt")):
        state = read_checkpoint(path)
        names = [name for name in (state or {}).get("names", ()) if name in prepared]
        if any(name in open_runs for name in names):  # with those that are finished, whose masks the others drew beside
            begun += divided(names, path, at_once) if at_once and at_once < len(names) else [(names, path)]
            open_runs = {name: run for name, run in open_runs.items() if name not in names}
        else:
            path.unlink()
    fresh = list[tuple[list[str], Path]]()
    for names in grouped(open_runs):
        size = at_once or len(names)
        for start in range(0, len(names), size):
            number = len(begun) + len(fresh)
            while any(path.stem == str(number) for _, path in begun):
                number += 1
            fresh.append((names[start : start + size], output / CHECKPOINTS / f"{number}.pt"))
    return [*begun, *fresh]


def halved(names: list[str], checkpoint: Path) -> list[tuple[list[str], Path]]:
    """Return a group in two, as `divided` does."""
    return divided(names, checkpoint, -(-len(names) // 2))


def divided(names: list[str], checkpoint: Path, size: int) -> list[tuple[list[str], Path]]:
    """Return a group in parts of a size, each with a checkpoint that holds what the group's does of its lanes."""
    state = read_checkpoint(checkpoint)
    parts = []
    for number, start in enumerate(range(0, len(names), size)):
        part, path = names[start : start + size], checkpoint.with_name(f"{checkpoint.stem}-{number}.pt")
        if state is not None:
            lanes = {name: each for name, each in state["lanes"].items() if name in part}
            write_checkpoint(path, {**state, "lanes": lanes, "names": part})
        parts.append((part, path))
    checkpoint.unlink(missing_ok=True)
    return parts


def is_over(run_folder: Path) -> bool:
    """Return whether a lane is finished or was stopped."""
    return (run_folder / folder.METRICS).is_file() or (run_folder / STOPPED).is_file()
