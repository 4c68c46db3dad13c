"""The README's Python, recipe and commands are run as they stand, on the real model."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, holding: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    (found,) = [text for text in blocks if holding in text]
    return found


def run(arguments: list[str], folder: Path) -> str:
    (folder / "examples").symlink_to(ROOT / "examples") if not (folder / "examples").exists() else None
    finished = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_python_of_the_readme_trains_an_adapter(tmp_path):
    run([sys.executable, "-c", block("python", "BiDoRATrainer")], tmp_path)
    assert (tmp_path / "runs/python/adapter/adapter_model.safetensors").is_file()


def test_recipe_and_commands_of_the_readme_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text(block("yaml", "model:"))
    short = ["search.steps=2", "retrain.steps=2", "eval_steps=2", "save_steps=2", "data.max_length=16"]
    for line in block("bash", "peft-bidora train recipe.yaml").splitlines():
        command = shlex.split(line, comments=True)[1:]
        added = short if command[0] in ("train", "check", "compare") else []
        output = run([sys.executable, "-m", "peft_bidora", *command, *added], tmp_path)
        assert "\x1b" not in output
    assert {"bidora", "lora"} == {
        yaml.safe_load((tmp_path / f"runs/{name}/recipe.yaml").read_text())["method"] for name in ("messages", "lora")
    }


def test_python_of_the_page_about_lanes_runs(tmp_path):
    page = (ROOT / "docs/lanes.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    told = run([sys.executable, "-c", code], tmp_path)
    assert [line.split()[0] for line in told.splitlines()] == ["seed=0", "seed=1"]


def test_two_commands_of_the_readme_are_in_the_makefile():
    targets = re.findall(r"^make (\S+)", block("bash", "make quickstart"), flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["quickstart", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_quickstart_recipe_has_no_faults():
    finished = subprocess.run(
        [sys.executable, "-m", "peft_bidora", "check", "examples/quickstart.yaml", "output=runs/unused-by-a-test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"all +│ 275 +│ 69 +│ 38 +│ 122 ", finished.stdout)
