"""Train LoRA, DoRA and BiDoRA on one real data set over seeds, interleaved, each in a process of its own.

    python benchmarks/methods.py --data-dir DIR --name trec6-500 --rows 500 --seeds 3

DIR has train.jsonl and test.jsonl, or validation.jsonl, which then serves as the test file. All methods see the same
splits of a seed and keep the checkpoint that is best on the selection split; nothing is tuned here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

METHODS = ("lora", "dora", "bidora")


def main() -> None:
    """Run, print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("overrides", nargs="*", help="recipe keys, such as search.steps=60")
    options = parser.parse_args()
    test = options.data_dir / "test.jsonl"
    test = test if test.exists() else options.data_dir / "validation.jsonl"
    recipe = {
        "model": "builtin:minilm",
        "data": {"train": str(options.data_dir / "train.jsonl"), "test": str(test), "max_train_rows": options.rows},
    }
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps({**recipe, "output": f"{folder}/run"}))  # JSON is YAML
        for seed in range(options.seeds):
            for method in options.methods:
                overrides = [f"method={method}", f"seed={seed}", f"output={folder}/{method}-{seed}"]
                runs.append({"seed": seed, **train(path, [*options.overrides, *overrides])})
                print(json.dumps({key: runs[-1][key] for key in ("method", "seed", "test", "seconds")}), flush=True)
    rows = [summary(runs, method) for method in options.methods]
    for row in rows:
        print(row)
    output = Path(__file__).parent / "results" / f"methods-{options.name}.json"
    settings = {"rows": options.rows, "overrides": options.overrides}
    output.write_text(json.dumps({"settings": settings, "summary": rows, "runs": runs}, indent=2) + "\n")


def train(recipe: Path, overrides: list[str]) -> dict[str, Any]:
    """Return the metrics of one run."""
    command = [sys.executable, "-m", "peft_bidora", "train", str(recipe), *overrides, "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    metrics = json.loads(finished.stdout)
    return {key: metrics[key] for key in ("method", "test", "seconds", "peak_memory_bytes", "trainable_parameters")}


def summary(runs: list[dict[str, Any]], method: str) -> dict[str, Any]:
    """Return the mean accuracy over seeds, and the median time as a ratio to LoRA's of the same seed."""
    own = [run for run in runs if run["method"] == method]
    lora = {run["seed"]: run["seconds"] for run in runs if run["method"] == "lora"}
    accuracy = [run["test"]["accuracy"]["value"] for run in own]
    return {
        "method": method,
        "accuracy": round(mean(accuracy), 4),
        "standard_deviation": round(pstdev(accuracy), 4),
        "seconds": round(median(run["seconds"] for run in own), 1),
        "time_over_lora": round(median(run["seconds"] / lora[run["seed"]] for run in own), 2) if lora else None,
        "peak_memory_mib": round(median(run["peak_memory_bytes"] for run in own) / 2**20),
    }


if __name__ == "__main__":
    main()
