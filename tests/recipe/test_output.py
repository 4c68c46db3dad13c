"""An output folder is held by one process, and a disk that refuses loses nothing."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from peft_bidora.errors import AdapterError, BiDoRAError, CheckpointError, DataError, RecipeError
from peft_bidora.recipe import predict as predict_module
from peft_bidora.recipe import run as run_module
from peft_bidora.recipe.folder import check_output
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.merge import merge
from peft_bidora.recipe.output import LOCK, held
from peft_bidora.recipe.predict import predict_file
from peft_bidora.recipe.run import run

Make = Callable[..., Path]
HOLD = """
import sys, time
from pathlib import Path
from peft_bidora.recipe.merge import merge
from peft_bidora.recipe.output import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_second_process_is_refused_until_the_first_is_killed(tmp_path: Path, make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(method="lora", retrain__steps=2))
    with another_process(recipe.output) as process:
        with pytest.raises(RecipeError, match=f"output={recipe.output} is in use: another process trains there"):
            run(recipe)
        assert [path.name for path in recipe.output.iterdir()] == [LOCK]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert run(recipe)["method"] == "lora"


def test_resumed_run_is_refused_too(make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(method="lora", retrain__steps=2))
    run(recipe)
    with another_process(recipe.output), pytest.raises(RecipeError, match="is in use"):
        run(recipe, resume=True)
    assert run(recipe, resume=True)["method"] == "lora"


def test_folder_is_held_only_while_it_runs_and_goes_if_it_is_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), held(tmp_path / "a"):
        raise ValueError("stop")
    assert not (tmp_path / "a").exists()
    with held(tmp_path / "a"):
        (tmp_path / "a" / "kept").touch()
    with held(tmp_path / "a"), pytest.raises(RecipeError, match="in use"), held(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "kept").exists()


def test_folder_below_a_file_is_refused_before_anything_is_read(tmp_path: Path, make_recipe: Make) -> None:
    (tmp_path / "file").touch()
    recipe = load_recipe(make_recipe(output=str(tmp_path / "file" / "run"), model="nowhere"))
    with pytest.raises(RecipeError, match=r"output=\S+ cannot be written: \S+file is a file"):
        run(recipe)


@pytest.mark.parametrize("exists", [True, False])
def test_folder_that_may_not_be_written_in_is_refused(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path if exists else tmp_path / "new"
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(RecipeError, match=f"output={folder} cannot be written: {tmp_path} may not be written in"):
        check_output(folder, resume=False, overwrite=False)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can make one")
def test_folder_that_the_system_refuses_to_make_is_a_message() -> None:
    with pytest.raises(RecipeError, match="output=/proc/run cannot be written: No such file"), held(Path("/proc/run")):
        pass


@contextmanager
def small_disk(most: int) -> Iterator[None]:
    """Let no file grow beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("method", "most"), [("bidora", 6000), ("full", 6000), ("full", 20_000)])
def test_full_disk_is_a_message_and_the_run_goes_on_from_there(method: str, most: int, make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(method=method))
    whole = run(recipe.model_copy(update={"output": recipe.output.with_name("whole")}))
    message = r"stopped: .*What was computed is kept\. Mend that .* with --resume\."
    with small_disk(most), pytest.raises(CheckpointError, match=message):
        run(recipe)
    assert run(recipe, resume=True)["test"] == whole["test"]


@pytest.mark.parametrize("most", [200, 1000])
def test_disk_that_is_full_at_once_leaves_what_can_be_overwritten(most: int, make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(method="lora"))
    with small_disk(most), pytest.raises(CheckpointError, match=r"stopped: File too large\. .* with --overwrite\."):
        run(recipe)
    assert run(recipe, overwrite=True)["method"] == "lora"


def test_library_that_hides_the_error_of_the_disk_is_understood(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(make_recipe(method="lora"))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(CheckpointError, match="PytorchStreamWriter failed writing"):
        run(recipe)
    monkeypatch.undo()
    assert run(recipe, resume=True)["method"] == "lora"


def test_error_of_another_kind_is_not_taken_for_one_of_the_disk(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(run_module, "finish", fail)
    with pytest.raises(RuntimeError, match="a bug") as caught:
        run(load_recipe(make_recipe(method="lora", retrain__steps=1)))
    assert not isinstance(caught.value, BiDoRAError)


def test_full_disk_ends_predicting_and_merging_with_a_message(
    make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "CHUNK_ROWS", 4)
    recipe = load_recipe(make_recipe(method="lora", retrain__steps=1))
    run(recipe)
    rows = str(tmp_path / "train.jsonl")
    told = r"out\.\w+\.partial cannot be written: .*File too large"
    for name, more in (("out.jsonl", r"(.|\n)*\d+ were written to"), ("out.csv", ""), ("out.parquet", "")):
        with small_disk(1500), pytest.raises(DataError, match=told + more):
            predict_file(recipe.output, rows, tmp_path / name, batch_size=4)
        assert not (tmp_path / name).exists()
    with small_disk(3000), pytest.raises(AdapterError, match=r"merged cannot be written: .* then merge again"):
        merge(recipe.output, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert merge(recipe.output, tmp_path / "merged").rows == 12


def test_folder_that_another_process_removes_before_the_lock_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, attempts = FileLock.acquire, list[bool]()

    def acquire_late(self: FileLock, *arguments: Any, **options: Any) -> Any:
        attempts.append(True)
        if len(attempts) == 1:
            (tmp_path / "run").rmdir()
            raise FileNotFoundError(tmp_path / "run")
        return acquire(self, *arguments, **options)

    monkeypatch.setattr(FileLock, "acquire", acquire_late)
    with held(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert len(attempts) == 2
