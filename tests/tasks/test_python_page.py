"""The Python of docs/python.md is run as it stands, on tiny models in place of those that it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), flags=re.DOTALL)
FIXTURES = {
    "sentence-transformers/all-MiniLM-L6-v2": "word_model",
    "openai-community/gpt2": "language_model",
    "facebook/esm2_t6_8M_UR50D": "esm_model",
}


def execute(block: str, folder: Path) -> str:
    """Run a block in a process and a folder of its own."""
    finished = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("block", [block for block in BLOCKS if "BiDoRATrainer" in block])
def test_block_of_a_task_leaves_an_adapter(block: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (name,) = [name for name in FIXTURES if name in block]
    execute(block.replace(name, str(request.getfixturevalue(FIXTURES[name]))), tmp_path)
    (adapter,) = (tmp_path / "runs").glob("*/adapter")
    config = PeftConfig.from_pretrained(adapter)
    assert config.use_dora  # type: ignore[attr-defined]
    assert config.task_type in block


def test_recipe_runs(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if "Recipe(" in block]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    short = block.replace('"steps": 100', '"steps": 4').replace('"steps": 150', '"steps": 2')
    assert short != block
    assert "'low'" in execute(short, tmp_path)
    assert len((tmp_path / "predicted.csv").read_text().splitlines()) == 123
