"""What ends one process of a run ends it on all, with a message; resumed, it is the run that nothing happened to."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import rank_commands
import torch
from launching import run_ranks, start_ranks
from safetensors.torch import load_file

from peft_bidora.cli import main
from peft_bidora.errors import RecipeError
from peft_bidora.recipe.checks import check_processes
from peft_bidora.recipe.load import load_recipe

Make = Callable[..., Path]
A_MINUTE = 60.0


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def broken(folder: Path, command: list[str], fault: rank_commands.Fault, **named: bool) -> tuple[str, str | None]:
    """Return what the two ranks of a run wrote on standard error, None for one that was killed."""
    first, second = start_ranks(rank_commands.give, folder, [command], fault, **named)
    second.join()
    started = time.monotonic()
    first.join(A_MINUTE)
    assert first.exitcode == 0, "it hangs"
    assert time.monotonic() - started < A_MINUTE
    said: list[str | None] = []
    for rank, process in enumerate((first, second)):
        if process.exitcode == -signal.SIGKILL:
            said.append(None)
            continue
        ((code, output, errors),) = torch.load(folder / f"returned-{rank}.pt", weights_only=False)
        assert (code, output) == (2, "")
        said.append(errors)
    return said[0] or "", said[1]


def test_run_that_is_broken_in_each_phase_and_resumed_is_the_unbroken_one_bit_for_bit(make_recipe: Make, tmp_path):
    recipe = str(make_recipe(search__steps=6, retrain__steps=6))  # with dropout
    run_ranks(rank_commands.give, tmp_path / "ranks", [["train", recipe, f"output={tmp_path / 'whole'}"]])
    cut = tmp_path / "cut"
    command, resumed = ["train", recipe, f"output={cut}"], ["train", recipe, f"output={cut}", "--resume"]
    lost = f"error: The run in {cut} stopped: another of its processes ended"

    first, second = broken(tmp_path / "killed", command, ("killed", "search", 5))
    assert lost in first
    assert "then give the same command with --resume" in first
    assert second is None

    first, second = broken(tmp_path / "full", resumed, ("full disk", "search", 6))
    assert f"error: The run in {cut} stopped: " in first
    assert "Mend that (a full disk needs room)" in first
    assert second is not None
    assert lost in second

    first, second = broken(tmp_path / "killed-too", resumed, ("killed", "retrain", 3))
    assert lost in first
    assert second is None

    for said in run_ranks(rank_commands.give, tmp_path / "resumed", [resumed]):
        assert said[0][0] == 0, said
    expected, found = adapter(tmp_path / "whole"), adapter(cut)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_sharded_run_that_loses_a_process_and_is_resumed_is_the_unbroken_one_bit_for_bit(make_recipe: Make, tmp_path):
    recipe = str(make_recipe(search__steps=6, retrain__steps=3))
    cut, full = tmp_path / "cut", ["train", recipe, f"output={tmp_path / 'full'}", "method=full"]
    whole, command = ["train", recipe, f"output={tmp_path / 'whole'}"], ["train", recipe, f"output={cut}"]
    first, second = run_ranks(rank_commands.give, tmp_path / "ranks", [full, whole], sharded=True)
    assert [said[0] for said in (*first, *second)] == [2, 0, 2, 0]
    assert "error: FSDP divides the weights that are frozen, and method=full trains them all." in first[0][2]

    said, _ = broken(tmp_path / "killed", command, ("killed", "search", 5), sharded=True)
    assert f"error: The run in {cut} stopped: another of its processes ended" in said
    resumed = [*command, "--resume"]
    for said in run_ranks(rank_commands.give, tmp_path / "resumed", [resumed], sharded=True):
        assert said[0][0] == 0, said
    expected, found = adapter(tmp_path / "whole"), adapter(cut)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_number_of_processes_that_is_none_is_told(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "abc")
    monkeypatch.setattr("sys.argv", ["peft-bidora", "check", str(make_recipe())])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "error: WORLD_SIZE=abc in the environment: expected a whole number" in capsys.readouterr().err


def test_commands_of_one_process_take_no_notice_of_fsdp(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for command in (["check", "--time"], ["train", "--lanes", "seed=0..1"]):
        monkeypatch.setattr("sys.argv", ["peft-bidora", command[0], str(make_recipe()), *command[1:]])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert "shard_base" not in capsys.readouterr().err


COMMANDS = ("compare", "tune", "check", "init", "evaluate", "predict", "merge", "report")


@pytest.mark.parametrize("command", [["train", "--lanes", "seed=0..1"], *([name] for name in COMMANDS)])
def test_commands_of_one_process_are_refused_where_several_were_started(
    command: list[str], make_recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    needed = {"predict": ["rows.jsonl"], "merge": ["-o", "merged"]}.get(command[0], [])
    monkeypatch.setattr("sys.argv", ["peft-bidora", command[0], str(make_recipe()), *needed, *command[1:]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is of one process, and 2 were started. Start it without torchrun" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == ""  # one process tells it


def test_batches_that_the_processes_cannot_divide_are_refused(make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(search__batch_size=4, search__upper_batch_size=6, retrain__batch_size=3))
    check_processes(recipe, 1)
    with pytest.raises(RecipeError) as caught:
        check_processes(recipe, 4)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "retrain.batch_size=3",
        "search.upper_batch_size=6",
    ]
    baseline = load_recipe(make_recipe(method="lora", search__batch_size=3))
    check_processes(baseline, 4)
