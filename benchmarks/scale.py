"""Measure how the cost of a step and of a run grows.

    python benchmarks/scale.py steps      # with width, depth, rank, tokens and rows of a batch
    python benchmarks/scale.py runs       # with the rows of the file and the number of steps

The steps are those of step.py, all shapes and cases interleaved. The runs are of `peft-bidora train` on sentences that
are made up, each in a process of its own: seconds of the training and peak resident memory.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from cases import CYCLE, Bench, Shape, clock

BASE = Shape(layers=2, width=256, batch=8, length=64)
GROWN: dict[str, tuple[int, ...]] = {
    "width": (128, 256, 512),
    "layers": (1, 2, 4),
    "rank": (4, 8, 32),
    "length": (32, 64, 128),
    "batch": (4, 8, 16),
}
CASES = ("lora", "retrain-ours", "search-4-one-sided")
ROWS, STEPS = (1_000, 10_000, 100_000), (16, 32, 64)
WORDS = "a quick brown fox jumps over the lazy dog and then runs home to sleep"
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "runs"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = steps(options) if options.what == "steps" else runs()
    result = {"settings": {**vars(options), "torch": torch.__version__}, **found}
    (RESULTS / f"scale-{options.what}.json").write_text(json.dumps(result, indent=2) + "\n")


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds a step by what grows, and the slope of their logarithms: 1 is linear."""
    base = replace(BASE, device=options.device)
    shapes = {replace(base, **{name: value}) for name, values in GROWN.items() for value in values}
    timed: dict[tuple[Shape, str], Callable[[], Any]] = {}
    for shape in shapes:
        made = Bench(shape).cases(list(CASES))
        timed |= {(shape, case): made[case] for case in CASES}
    seconds: dict[tuple[Shape, str], list[float]] = {key: [] for key in timed}
    for key in timed:
        timed[key]()
    for _ in range(options.rounds):
        for key in random.sample(list(timed), len(timed)):
            seconds[key].append(clock(timed[key], options.device))
    rows = []
    for name, values in GROWN.items():
        for case in CASES:
            times = [1e3 * median(seconds[replace(base, **{name: value}), case]) / CYCLE for value in values]
            slope = float(np.polyfit(np.log(values), np.log(times), 1)[0])
            rows.append({"grows": name, "case": case, "values": values, "milliseconds": times, "slope": slope})
            shown = ", ".join(f"{value}: {time:.1f} ms" for value, time in zip(values, times, strict=True))
            print(f"{name:7} {case:20} slope {slope:.2f}  {shown}")
    return {"steps": rows}


def runs() -> dict[str, Any]:
    """Return seconds and peak memory of runs by the rows of their file and by their steps."""
    rows = []
    for count, number in [*((count, STEPS[0]) for count in ROWS), *((ROWS[0], number) for number in STEPS[1:])]:
        found = {"rows": count, "steps": number, **trained(count, number)}
        rows.append(found)
        print(found, flush=True)
    return {"runs": rows}


def trained(rows: int, number: int) -> dict[str, float]:
    """Return what a run of BiDoRA takes: a search and a retrain phase of so many steps each."""
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "train.jsonl").open("w", encoding="utf-8") as file:
            for row in range(rows):
                text = " ".join(generator.choices(WORDS.split(), k=12)) + f" {row}"
                file.write(json.dumps({"text": text, "label": "even" if row % 2 == 0 else "odd"}) + "\n")
        recipe = {
            "model": "builtin:minilm",
            "data": {"train": "train.jsonl", "test_fraction": 100 / rows, "selection_fraction": 0},
            "search": {"steps": number},
            "retrain": {"steps": number},
            "select_best": False,
            "save_steps": number,
            "output": f"{folder}/run",
        }
        (Path(folder) / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "peft_bidora", "train", f"{folder}/recipe.yaml", "--json"]
        metrics = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {"seconds": round(metrics["seconds"], 1), "peak_mib": round(metrics["peak_memory_bytes"] / 2**20)}


if __name__ == "__main__":
    main()
