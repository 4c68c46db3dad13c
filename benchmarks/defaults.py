"""Choose default settings: train with each on several sets, and compare the selection metric; no test row is read.

    python benchmarks/defaults.py --data-dir DIR --name rates --set method=dora --settings \
        "retrain.learning_rate=1e-3" "retrain.learning_rate=1e-3 adapter.target_modules=all-linear"

Each set gives `--rows` train rows and `--selection-rows` rows to choose by. The seeds of a setting are trained side by
side; `results/defaults-NAME.json` is written after each setting, and what it holds is not trained again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from methods import RESULTS, SETS, train

UNREAD_ROWS = 20  # a run has test rows; these are some of the train file, and their metrics are not looked at


def main() -> None:
    """Train what is missing, and print a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the file of results")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["trec6", "cola", "rte", "wnut17"])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--selection-rows", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--settings", nargs="+", required=True, help="recipe keys of each setting, in quotes")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="recipe keys of all settings")
    options = parser.parse_args()
    output = RESULTS / f"defaults-{options.name}.json"
    runs: list[dict[str, Any]] = json.loads(output.read_text())["runs"] if output.exists() else []
    for name in options.sets:
        for setting in options.settings:
            wanted = {"set": name, "setting": setting, "seeds": options.seeds, "all": options.overrides}
            if any(wanted.items() <= run.items() for run in runs):
                continue
            runs.append({**wanted, **trained(name, [*options.overrides, *setting.split()], options)})
            print(runs[-1], flush=True)
            settings = {"rows": options.rows, "selection_rows": options.selection_rows}
            output.write_text(json.dumps({"settings": settings, "runs": runs}, indent=2) + "\n")
    print(table(runs))


def trained(name: str, overrides: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the selection metric of each seed, at the checkpoint that is best by it, and the CPU seconds of a seed."""
    (task, metric), train_file = SETS[name], options.data_dir / name / "train.jsonl"
    with train_file.open(encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    rows = {
        "train": str(train_file),
        "max_train_rows": options.rows,
        "selection_fraction": options.selection_rows / count,
        "test_fraction": UNREAD_ROWS / count,
    }
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(
            json.dumps({"model": "builtin:minilm", "task": task, "data": rows, "output": f"{folder}/run"})
        )
        found = train(recipe, overrides, options.seeds)
    values = [run["selection"][metric]["value"] for run in found]
    return {"metric": metric, "values": values, "cpu_seconds": found[0]["cpu_seconds"]}


def table(runs: list[dict[str, Any]]) -> str:
    """Return Markdown: for what settings have in common a table of them, with the mean ± deviation of each set."""
    parts = []
    for shared in dict.fromkeys(" ".join(run["all"]) for run in runs):
        group = [run for run in runs if " ".join(run["all"]) == shared]
        sets = list(dict.fromkeys(run["set"] for run in group))
        lines = [f"All: {shared}", "", "| setting | " + " | ".join(sets) + " |", "| --- " * (len(sets) + 1) + "|"]
        for setting in dict.fromkeys(run["setting"] for run in group):
            cells = []
            for name in sets:
                values = next((run["values"] for run in group if (run["setting"], run["set"]) == (setting, name)), None)
                spread = f" ± {stdev(values):.3f}" if values and len(values) > 1 else ""
                cells.append(f"{mean(values):.3f}{spread}" if values else "–")
            lines.append(f"| {setting} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
