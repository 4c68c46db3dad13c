"""Several workers in one comparison: real processes, one of them killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from peft_bidora.errors import BiDoRAError, CheckpointError, InUseError
from peft_bidora.recipe.output import held, in_use
from peft_bidora.study import compare as compare_module
from peft_bidora.study.compare import compare
from peft_bidora.study.plan import make_plan
from peft_bidora.study.plan_file import JOINED
from peft_bidora.study.workers import working

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
        first.wait()
        with pytest.raises(InUseError, match="another process still works on its runs"):
            compare(make_plan(recipe, [], ["lora", "dora", "bidora"], seeds=2, rates=[1]), overwrite=True)
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
    left = tmp_path / f"run/{JOINED}-1"  # by a killed process
    left.mkdir()
    assert compare(plan, join=True) == json.loads((tmp_path / "run/comparison.json").read_text())
    assert not left.exists()
    with pytest.raises(CheckpointError, match=r"has other folders, runs\. Give the command that began it"):
        compare(make_plan(recipe, [], ["lora", "dora"], seeds=1), join=True)


def test_comparison_that_has_begun_no_run_is_joined_by_its_own_recipe_alone(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = make_recipe()
    with monkeypatch.context() as patch:
        patch.setattr(compare_module, "_open_jobs", lambda *_: [][0])  # it ends when its plan is written
        with pytest.raises(IndexError):
            compare(make_plan(recipe, [], ["lora"], seeds=1))
    path = tmp_path / "run/plan.json"
    plan = json.loads(path.read_text())
    elsewhere = shutil.copytree(tmp_path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("run", "elsewhere"))
    other = make_plan(elsewhere / recipe.name, ["retrain.steps=6", f"output={tmp_path / 'run'}"], ["lora"], seeds=1)
    with pytest.raises(CheckpointError, match=r"has other retrain\.steps\. Give the command that began it"):
        compare(other, join=True)
    path.write_text(json.dumps({key: value for key, value in plan.items() if key != "recipe"}))  # an older version's
    compare(make_plan(elsewhere / recipe.name, [f"output={tmp_path / 'run'}"], ["lora"], seeds=1), join=True)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_comparison_is_replaced_once_no_other_process_works_on_it(
    method: str, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_bidora.study.compare.run_jobs", lambda *_: {method: BiDoRAError("begun")})
    plan = make_plan(make_recipe(), [], [method], seeds=1)
    variant = plan.variants[0]
    with pytest.raises(BiDoRAError, match="begun"):
        compare(plan)
    run_folder = plan.folder(variant) if variant.side_by_side else variant.settings[0].recipe.output
    # One that joined and is between two runs; and one that was begun before and trains.
    for holding in (working(plan.output, JOINED), held(run_folder)):
        with holding, pytest.raises(InUseError, match=r"another process still works on its runs\. End it, let it end"):
            compare(plan, overwrite=True)
    with pytest.raises(BiDoRAError, match="begun"):
        compare(plan, overwrite=True)


def test_joined_process_holds_a_folder_while_it_works(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(make_recipe(), [], ["lora"], seeds=1)
    joined = list[Path]()

    def look(*_: Any) -> dict[str, BiDoRAError]:
        joined.extend(plan.output.glob(f"{JOINED}-*"))
        assert all(map(in_use, joined))
        return {"lora": BiDoRAError("begun")}

    monkeypatch.setattr("peft_bidora.study.compare.run_jobs", look)
    for join in (False, True):
        assert not joined
        with pytest.raises(BiDoRAError, match="begun"):
            compare(plan, join=join)
    assert [path.name for path in joined] == [f"{JOINED}-0"]
    assert not joined[0].exists()


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
