"""The table of a comparison's runs."""

import csv
from pathlib import Path
from typing import Any

from peft_bidora.report.tables import write_csv


def test_runs_that_chose_the_rate_are_told_from_those_that_are_compared(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"stopped": False, "selection": 0.5, "test": {"accuracy": 0.25}, "seconds": 1.5}
    runs = [
        {"rate": "1", "seed": "0", "folder": "lora/a", "tunes": True, "chosen": False, **shared},
        {"rate": "2", "seed": "1", "folder": "lora/b", "tunes": False, "chosen": True, **shared},
    ]
    write_csv({"methods": [{"label": "lora", "runs": runs}]}, tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["label"], row["rate"], row["tunes"], row["chosen"]) for row in found] == [
        ("lora", "1", "True", "False"),
        ("lora", "2", "False", "True"),
    ]
    assert [row["test_accuracy"] for row in found] == ["0.25", "0.25"]
