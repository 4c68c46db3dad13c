"""Train whole runs: how long BiDoRA takes until it is as good on the selection rows as LoRA is at its end.

    python benchmarks/run.py --data-dir DIR --set trec6 --rows 500 --seeds 3

Each seed trains LoRA and every variant of BiDoRA on the same splits, in turn. A variant's time is that of its steps,
search and retrain phase together, evaluations left out, until an evaluation of the retrain phase first reaches the best
selection metric of the whole LoRA run; the ratio is to the time of that whole run. Times are CPU seconds.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from time import process_time
from typing import Any

import torch
from methods import SETS
from transformers import TrainerCallback

from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import make_trainer

VARIANTS = {
    "default": [],
    "first-order": ["search.hypergradient=first-order"],
    "K=2": ["search.lower_steps=2"],
    "half": ["search.steps=100", "search.lower_steps=2", "retrain.steps=150"],
    "warm": ["search.steps=150", "search.lower_steps=3", "retrain.steps=75", "retrain.from=search"],
}


def main() -> None:
    """Run, print the ratios and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--set", default="trec6", choices=SETS)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["default", "half", "warm"])
    parser.add_argument("--override", nargs="*", default=[], help="recipe keys of every run")
    options = parser.parse_args()
    seeds = []
    for seed in range(options.seeds):
        lora = trained(options, ["method=lora"], seed)
        found: dict[str, Any] = {"lora": {"seconds": lora.seconds, "best": lora.best()}}
        for name in options.variants:
            run = trained(options, VARIANTS[name], seed)
            reached = run.reached(lora.best())
            found[name] = {
                "ratio": None if reached is None else round(reached / lora.seconds, 3),
                "whole_ratio": round(run.seconds / lora.seconds, 3),
                "best": run.best(),
            }
            print(seed, name, found[name], flush=True)
        seeds.append(found)
    summary = {name: summarised([found[name] for found in seeds]) for name in options.variants}
    for name, row in summary.items():
        print(f"{name:12} {row}")
    settings = {name: str(value) for name, value in vars(options).items() if name != "data_dir"}
    settings |= {"torch": torch.__version__, "threads": str(torch.get_num_threads())}
    output = Path(__file__).parent / "results" / f"run-{options.set}-{options.rows}.json"
    output.write_text(json.dumps({"settings": settings, "summary": summary, "seeds": seeds}, indent=2) + "\n")


@dataclass
class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Add up the time of the steps, and note it with the selection metric at each evaluation of the retrain phase."""

    metric: str
    sign: int  # −1 where less of the metric is better
    seconds: float = 0.0
    evaluations: list[tuple[float, float]] = field(default_factory=list)
    _start: float = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start = process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds += process_time() - self._start

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        if Path(args.output_dir).name == "retrain":
            self.evaluations.append((self.seconds, self.sign * metrics[f"eval_{self.metric}"]))

    def best(self) -> float:
        """Return the best metric, with the sign by which more is better."""
        return max(value for _, value in self.evaluations)

    def reached(self, value: float) -> float | None:
        """Return the seconds after which the metric was first as good as a value; None if it never was."""
        return next((seconds for seconds, found in self.evaluations if found >= value), None)


def trained(options: argparse.Namespace, overrides: list[str], seed: int) -> Clock:
    """Train one run and return its clock."""
    task, metric = SETS[options.set]
    data = options.data_dir / options.set
    test = next(path for path in (data / "test.jsonl", data / "validation.jsonl") if path.exists())
    rows = {"train": str(data / "train.jsonl"), "test": str(test), "max_train_rows": options.rows}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        recipe = {"model": "builtin:minilm", "task": task, "data": rows, "output": f"{folder}/run", "seed": seed}
        path.write_text(json.dumps(recipe | {"eval_steps": 15, "save_steps": 150}))  # JSON is YAML
        loaded = load_recipe(path, ["select_best=false", *options.override, *overrides])
        loaded.output.mkdir()
        prepared = prepare(loaded)
        trainer = make_trainer(prepared)
        clock = Clock(metric, -1 if metric in prepared.rows.task.lower_is_better else 1)
        trainer.add_callback(clock)
        trainer.train()
    return clock


def summarised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the ratios over seeds, one never reached counted as infinite, and the mean best."""
    ratios = [float("inf") if row["ratio"] is None else row["ratio"] for row in rows]
    middle = median(ratios)
    return {
        "ratio": None if middle == float("inf") else middle,
        "reached": sum(row["ratio"] is not None for row in rows),
        "whole_ratio": round(median(row["whole_ratio"] for row in rows), 3),
        "best": round(mean(row["best"] for row in rows), 4),
    }


if __name__ == "__main__":
    main()
