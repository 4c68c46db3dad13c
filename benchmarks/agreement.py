"""Train lanes and as many single runs, dropout on, and test whether their means differ.

    python benchmarks/agreement.py --data-dir DIR --seeds 32

A seed gives a lane and its single run the same rows, first values and order; the masks of dropout differ, and so do the
results of a seed. Of the paired differences on the test rows: mean, 95 % interval of Student's t, and the p-values of
the paired t-test and of Wilcoxon's signed-rank test, for the mean of the metric and for the loss of the last steps.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from methods import RESULTS, SETS
from scipy import stats

from peft_bidora.quiet import quiet_libraries
from peft_bidora.recipe.lane_settings import load_settings
from peft_bidora.recipe.lanes import run_lanes
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.run import run


def main() -> None:
    """Train both, print the tests and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--set", default="trec6", choices=SETS)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--override", nargs="*", default=[], help="recipe keys of every run")
    options = parser.parse_args()
    quiet_libraries()
    logging.disable(logging.WARNING)
    (task, metric), data = SETS[options.set], options.data_dir / options.set
    with (data / "train.jsonl").open(encoding="utf-8") as lines:
        share = 0.2 * options.rows / sum(1 for _ in lines)
    rows = {"train": str(data / "train.jsonl"), "test": str(data / "test.jsonl"), "max_train_rows": options.rows}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        recipe = {"model": "builtin:minilm", "task": task, "data": {**rows, "selection_fraction": share}}
        path.write_text(json.dumps({**recipe, "output": f"{folder}/lanes"}))  # JSON is YAML
        settings = load_settings(path, options.override, [f"seed=0..{options.seeds - 1}"])
        lanes = [outcome.metrics for outcome in run_lanes(settings, Path(folder) / "lanes")]
        alone = []
        for seed in range(options.seeds):
            alone.append(run(load_recipe(path, [*options.override, f"seed={seed}", f"output={folder}/{seed}"])))
            print(seed, *(each[seed]["test"][metric]["value"] for each in (lanes, alone)), flush=True)
        training = {
            "lanes": [last_loss(Path(folder) / "lanes" / f"seed={seed}") for seed in range(options.seeds)],
            "alone": [last_loss(Path(folder) / str(seed)) for seed in range(options.seeds)],
        }
    scores = {"lanes": [each["test"][metric]["value"] for each in lanes]}
    scores["alone"] = [each["test"][metric]["value"] for each in alone]
    found = {metric: compared(**scores), "training_loss": compared(**training)}
    kept = {name: value for name, value in vars(options).items() if name != "data_dir"}
    result = {"settings": {**kept, "torch": torch.__version__}, "found": found}
    print(
        json.dumps({name: {k: v for k, v in each.items() if k != "values"} for name, each in found.items()}, indent=2)
    )
    (RESULTS / f"agreement-{options.set}-{options.rows}.json").write_text(json.dumps(result, indent=2) + "\n")


def last_loss(folder: Path) -> float:
    """Return the mean training loss of the last three entries of a run's log."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry and entry.get("phase") == "retrain"]
    return mean(losses[-3:])


def compared(lanes: list[float], alone: list[float]) -> dict[str, Any]:
    """Return the means of paired values, and whether they differ."""
    differences = np.array(lanes) - np.array(alone)
    interval = stats.ttest_rel(lanes, alone).confidence_interval(0.95)
    return {
        "lanes": [round(mean(lanes), 4), round(stdev(lanes), 4)],
        "alone": [round(mean(alone), 4), round(stdev(alone), 4)],
        "difference": round(float(differences.mean()), 4),
        "interval": [round(float(interval.low), 4), round(float(interval.high), 4)],
        "p_t": round(float(stats.ttest_rel(lanes, alone).pvalue), 4),
        "p_wilcoxon": round(float(stats.wilcoxon(lanes, alone).pvalue), 4) if differences.any() else 1.0,
        "values": {"lanes": lanes, "alone": alone},
    }


if __name__ == "__main__":
    main()
