"""What the pages of docs are made with: figures in, tables out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"


def load(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def printed(command: list[str], **environment: str) -> Any:
    """Return what the last line that a process of its own prints says, which is JSON.

    Args:
        command: without the Python that runs it.
        environment: what it finds besides this one's.
    """
    finished = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return json.loads(finished.stdout.splitlines()[-1])


def table(names: list[str], rows: list[list[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [names, ["---"] * len(names), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
