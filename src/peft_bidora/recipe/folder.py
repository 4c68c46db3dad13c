"""The run folder: what stands in it, and whether a run may start or go on there."""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from peft_bidora.data.values import as_json
from peft_bidora.errors import CheckpointError, RecipeError
from peft_bidora.recipe.load import dump_recipe, flat
from peft_bidora.recipe.output import LOCK, check_writable
from peft_bidora.recipe.prepare import Prepared, Rows
from peft_bidora.recipe.schema import Recipe

RECIPE, MANIFEST, METRICS, TASK = "recipe.yaml", "manifest.json", "metrics.json", "task.json"
SECONDS = "seconds.json"
STUDY = "lanes.json"  # of a folder with many runs
DEFAULT_CURE = "Put it back from a copy, or train anew with --overwrite"
# What a run writes; the metrics, which mark it as finished, are the first to go, and the manifest, which makes the
# folder a run, is the last to go and the first to come.
WRITTEN = (
    *(METRICS, "search", "retrain", "adapter", "model", TASK, RECIPE),
    *("metrics.jsonl", "predictions.jsonl", "report.html", SECONDS, MANIFEST),
)
BEFORE_A_RUN = (LOCK, f"{MANIFEST}.partial")  # what a process leaves that is killed before it has begun
LOADED = re.compile(r"""(\.from_pretrained\()('[^']*'|"[^"]*")""")  # a folder, in a line that loads it
LANE_GOES_ON = "holds a lane that is not finished. Go on with the study that it is of, by its command and --resume."
PACKAGES = ("peft-bidora", "torch", "transformers", "peft", "accelerate", "datasets")


def weights_folder(recipe: Recipe) -> Path:
    """Return where the weights of a run lie: its adapter, or the model that was trained in full."""
    return recipe.output / ("model" if recipe.method == "full" else "adapter")


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run of ours: others have a recipe.yaml or a manifest.json too."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    wanted = ("data_sha256", "split_sha256", "rows")
    return isinstance(manifest, dict) and all(isinstance(manifest.get(key), dict) for key in wanted)


def is_open_lane(folder: Path) -> bool:
    """Return whether a run is a lane of a study, and not over."""
    return read_object(folder / MANIFEST, ()).get("lane", False) and not (folder / METRICS).is_file()


def require_run(folder: Path) -> None:
    """Raise CheckpointError unless a folder holds a run."""
    if (folder / STUDY).is_file():
        raise CheckpointError(f"{folder} holds a study of lanes. Name the folder of one of them, in it.")
    if not is_run(folder):
        raise CheckpointError(
            f"{folder} holds no run: expected a {MANIFEST} that one wrote. Name the output folder of a run."
        )


def check_output(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise unless a run may start (or, with resume, go on) in a folder.

    Raises:
        RecipeError: another run or other files are there, or the folder cannot be written in.
        CheckpointError: there is no run to resume.
    """
    if (folder / STUDY).is_file():
        raise RecipeError(f"output={folder} holds a study of lanes. Name its --lanes too, or another output.")
    if resume:
        if not is_run(folder):
            raise CheckpointError(f"output={folder} holds no run to resume. Start it without --resume.")
        if is_open_lane(folder):
            raise CheckpointError(f"output={folder} {LANE_GOES_ON}")
    elif folder.exists() and not folder.is_dir():
        raise RecipeError(f"output={folder} is a file; expected a folder to make. Name another output.")
    elif is_run(folder) and not overwrite:
        raise RecipeError(
            f"output={folder} holds another run. Go on with it by --resume, replace it by --overwrite, or name another"
            " output."
        )
    elif folder.is_dir() and not is_run(folder) and any(path.name not in BEFORE_A_RUN for path in folder.iterdir()):
        raise RecipeError(f"output={folder} holds files that are no run; they are left alone. Name another output.")
    check_writable(folder)


def begin(prepared: Prepared, is_lane: bool = False) -> dict[str, Any]:
    """Make a run folder with its recipe, task and manifest; return the manifest.

    Of a run that is replaced only what a run writes is removed.

    Args:
        prepared: the run.
        is_lane: whether it is one of a study, which alone goes on with it.
    """
    recipe, rows = prepared.recipe, prepared.rows
    recipe.output.mkdir(parents=True, exist_ok=True)
    clear(recipe.output)
    manifest = {
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "seed": recipe.seed,
        "data_sha256": rows.file_hashes,
        "split_sha256": rows.split_hashes(),
        "rows": {name: len(part) for name, part in rows.parts.items()},
        **({"lane": True} if is_lane else {}),
    }
    write_json(recipe.output / MANIFEST, manifest)
    task = {
        "name": rows.task.name,
        "state": rows.task.state(),
        "text": rows.columns.text,
        "label": rows.columns.label,
        "max_length": prepared.max_length,
    }
    write_json(recipe.output / TASK, task)
    write_text(recipe.output / RECIPE, dump_recipe(recipe))  # the last: without it a run is not resumed
    return manifest


def clear(folder: Path) -> None:
    """Remove what a run wrote in a folder."""
    for name in WRITTEN:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_same_run(recipe: Recipe, rows: Rows) -> dict[str, Any]:
    """Return the manifest of the run in the output folder, after comparing it with this recipe and data.

    Raises:
        CheckpointError: the recipe or the data changed; each key that did is named.
    """
    folder = recipe.output
    try:
        values = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
        manifest = read_object(folder / MANIFEST, ())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{folder} cannot be resumed: {error}. Start the run anew with --overwrite.") from None
    old, new = flat(values if isinstance(values, dict) else {}), flat(yaml.safe_load(dump_recipe(recipe)))
    # A file that was moved is the same file: its hash, compared below, decides. A hub data set has none.
    same = {"output"} | {f"data.{key}" for key, digest in rows.file_hashes.items() if digest is not None}
    faults = [
        f"{key} was {old.get(key)!r} and is {new.get(key)!r}: a run is resumed with the recipe that it began with."
        " Put it back, or start anew with --overwrite."
        for key in sorted(old.keys() | new.keys())
        if key not in same and old.get(key) != new.get(key)
    ]
    faults += _changes(manifest, rows)
    if faults:
        raise CheckpointError(*faults)
    seconds_before(folder / SECONDS)
    return manifest


def check_same_rows(folder: Path, rows: Rows) -> None:
    """Compare the data of a finished run with those that it was trained on.

    Raises:
        CheckpointError: they changed; each file and split that did is named.
    """
    if changes := _changes(read_object(folder / MANIFEST, ()), rows):
        raise CheckpointError(*changes, name_the_rows(folder))


def name_the_rows(folder: Path) -> str:
    """Return what to do where the test rows of a finished run are not to be had."""
    return (
        f"The test rows of {folder} can be scored only as they were. Put the files back, or name the rows to score:"
        f" peft-bidora evaluate {folder} DATA"
    )


def seconds_before(path: Path) -> float:
    """Return the seconds of training that a run took until its last checkpoint.

    Raises:
        CheckpointError: the file that says so is damaged.
    """
    if not path.is_file():
        return 0.0
    cure = "Remove it: the time is then counted from now on"
    seconds = read_object(path, ("seconds",), cure)["seconds"]
    if not isinstance(seconds, int | float):
        raise _damaged(path, f"seconds is {seconds!r}", cure)
    return float(seconds)


def read_object(path: Path, keys: Iterable[str], cure: str = DEFAULT_CURE) -> dict[str, Any]:
    """Return a JSON object that a run wrote.

    Args:
        path: in the run folder.
        keys: that it must have.
        cure: what to do where it is damaged.

    Raises:
        CheckpointError: it cannot be read, or is no such object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error), cure) from None
    if not isinstance(found, dict):
        raise _damaged(path, "expected an object", cure)
    if missing := [key for key in keys if key not in found]:
        raise _damaged(path, f"it has no {', '.join(missing)}", cure)
    return found


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return what `write_json_lines` wrote; nothing where there is no file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as lines:  # str.splitlines would end one at the U+2028 of a text
            return [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error), DEFAULT_CURE) from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    write_text(path, as_json(value, indent=2, default=str).decode() + "\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value a line, as `write_json` does."""
    write_text(path, "".join(as_json(value, default=str).decode() + "\n" for value in values))


def write_text(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _damaged(path: Path, reason: str, cure: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {reason}. {cure}.")


def _changes(manifest: dict[str, Any], rows: Rows) -> list[str]:
    """Return a sentence for each file and each split that is not the one of the manifest."""
    files, splits = manifest["data_sha256"], manifest["split_sha256"]
    return [
        *(
            f"data.{key}: the file is not the one that the run began with (its sha256 differs)."
            for key, digest in rows.file_hashes.items()
            if files.get(key) != digest
        ),
        *(
            f"The {key} split has other rows than when the run began."
            for key, digest in rows.split_hashes().items()
            if splits.get(key) != digest
        ),
    ]
