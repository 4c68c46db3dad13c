"""Several workers in one comparison: real processes, one of them killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from peft_bidora.errors import CheckpointError
from peft_bidora.recipe.output import held, in_use
from peft_bidora.study.compare import compare
from peft_bidora.study.plan import make_plan

Make = Callable[..., Path]
SOURCE = Path(__file__).parents[2] / "src"
TIMEOUT = 240


COMPARE = ("compare", "--methods", "lora,dora,bidora", "--seeds", "2", "--rates", "1")


def worker(recipe: Path, *options: str, command: tuple[str, ...] = COMPARE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "peft_bidora", command[0], str(recipe), *command[1:], "--json", *options],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(what: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    end = monotonic() + TIMEOUT
    while not what():
        assert monotonic() < end
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        sleep(0.05)


def test_worker_takes_what_no_other_has_and_what_a_killed_one_leaves(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(search__steps=60, retrain__steps=120, eval_steps=30, save_steps=30)
    whole = worker(recipe, f"output={tmp_path / 'whole'}")
    expected = json.loads(whole.communicate(timeout=TIMEOUT)[0])
    shared = tmp_path / "run"
    first = worker(recipe)
    wait_for(lambda: (shared / "plan.json").is_file(), first)
    second = worker(recipe, "--join")
    try:
        wait_for(lambda: (shared / "lora/rate=1,seed=1/metrics.json").is_file(), first, second)
        kept = (shared / "lora/rate=1,seed=1/metrics.json").stat().st_mtime_ns
        wait_for(lambda: in_use(shared / "dora") or in_use(shared / "bidora"), first, second)
        first.send_signal(signal.SIGKILL)
        found = json.loads(second.communicate(timeout=TIMEOUT)[0])
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert [method["values"] for method in found["methods"]] == [method["values"] for method in expected["methods"]]
    assert (shared / "lora/rate=1,seed=1/metrics.json").stat().st_mtime_ns == kept
    assert json.loads((shared / "comparison.json").read_text()) == found


def test_trials_are_divided_among_workers_and_a_killed_one_loses_its_own(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(search__steps=30, retrain__steps=60, eval_steps=30, save_steps=30)
    command, log = ("tune", "--trials", "8"), tmp_path / "run/optuna-trials.log"
    first = worker(recipe, command=command)
    wait_for(lambda: log.is_file() and bool(log.read_bytes()), first)
    second = worker(recipe, "--join", command=command)
    try:
        wait_for(lambda: (tmp_path / "run/.trial-under-way-1/run").is_dir(), first, second)
        wait_for(lambda: (tmp_path / "run/.trial-under-way-0/run").is_dir(), first, second)
        first.send_signal(signal.SIGKILL)
        found = json.loads(second.communicate(timeout=TIMEOUT)[0])
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    states = [trial["state"] for trial in found["trials"]]
    assert states.count("fail") <= 1
    assert len(states) - states.count("fail") == 8
    assert not list((tmp_path / "run").glob(".trial-under-way-*"))
    assert json.loads((tmp_path / "run/tune.json").read_text()) == found


def test_comparison_is_joined_as_it_was_begun(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe()
    plan = make_plan(recipe, [], ["lora"], seeds=1)
    with pytest.raises(CheckpointError, match=r"holds no comparison to join\. Begin it by this command without --join"):
        compare(plan, join=True)
    compare(plan)
    assert compare(plan, join=True) == json.loads((tmp_path / "run/comparison.json").read_text())
    with pytest.raises(CheckpointError, match=r"has other folders, runs\. Give the command that began it"):
        compare(make_plan(recipe, [], ["lora", "dora"], seeds=1), join=True)


def test_folder_is_in_use_while_a_process_holds_it(tmp_path: Path) -> None:
    assert not in_use(tmp_path / "missing")
    code = "import sys; from pathlib import Path; from peft_bidora.recipe.output import held\n"
    code += "with held(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    environment: Any = {**os.environ, "PYTHONPATH": str(SOURCE)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], env=environment, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert in_use(tmp_path / "run")
    process.kill()
    process.communicate()
    assert not in_use(tmp_path / "run")
    with held(tmp_path / "run"):
        pass
