"""The site of the documentation builds without a warning."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
HAS_SPHINX = all(importlib.util.find_spec(name) for name in ("sphinx", "myst_parser", "furo"))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SPHINX, reason="the extra docs is not installed")
def test_site_builds_with_every_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    commands = (tmp_path / "commands.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in commands for name in ("train", "check", "compare", "tune", "report", "merge"))


@pytest.mark.parametrize(("module", "name"), [("page", "benchmarks"), ("results_page", "results")])
def test_page_of_figures_is_what_the_stored_ones_make(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS.parent / "benchmarks"))
    made: str = importlib.import_module(module).page()
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == made, f"python benchmarks/{module}.py"


def test_every_page_is_on_the_site() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index", "commands"}  # the latter is made by the build
    assert pages <= set(index)
