"""A comparison as a table of its runs."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIRST = ("label", "rate", "seed", "fold", "tunes", "chosen", "stopped", "selection")
LAST = ("seconds", "peak_memory_bytes", "trainable_parameters", "folder")


def write_csv(result: Mapping[str, Any], path: Path) -> None:
    """Write a row for each run of a comparison: what varies, its selection metric, its test metrics and its cost.

    Args:
        result: what `compare` returned.
        path: of the file.
    """
    runs = [{"label": method["label"], **run} for method in result["methods"] for run in method["runs"]]
    tested = list(dict.fromkeys(name for run in runs for name in run["test"]))
    columns = [name for name in FIRST if any(name in run for run in runs)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"test_{name}" for name in tested), *LAST])
        for run in runs:
            values = [run.get(name) for name in columns]
            writer.writerow([*values, *(run["test"].get(name) for name in tested), *(run.get(name) for name in LAST)])
