"""Time a study of lanes against as many runs, each a command of its own.

    python benchmarks/lanes.py --data-dir DIR --lanes 1 4 16

A round runs one run alone and then the lanes, for each number of lanes; the ratio is that of the lanes' command to so
many times the median run alone. All are whole commands: imports, loading, training, choosing a checkpoint on selection
rows and scoring the test rows. Memory is the peak of a command. Beside it stand the padded tokens of a row, drawn from
the lengths of the train rows: in a batch of one run, in a batch of all lanes at once, and in the passes of lanes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from methods import RESULTS, SETS

from peft_bidora.data.source import read_table
from peft_bidora.tasks.base_model import load_tokenizer, resolve_model
from peft_bidora.training.lane_passes import ROWS_ON_CPU

MIB = 2**20
BATCH = 16  # rows, the default of a recipe


def main() -> None:
    """Run, print the ratios and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--set", default="trec6", choices=SETS)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--override", nargs="*", default=[], help="recipe keys of every run")
    parser.add_argument("--name", default="cpu")
    options = parser.parse_args()
    alone: list[dict[str, float]] = []
    found: dict[int, list[dict[str, float]]] = {count: [] for count in options.lanes}
    for _ in range(options.rounds):
        for count in options.lanes:
            alone.append(timed(options, [f"seed={len(alone)}"]))
            found[count].append(timed(options, [], f"seed=0..{count - 1}"))
            print(count, alone[-1], found[count][-1], flush=True)
    single = median(run["seconds"] for run in alone)
    rows = {
        count: {
            "seconds": round(median(run["seconds"] for run in runs), 1),
            "ratio": round(median(run["seconds"] for run in runs) / (count * single), 3),
            "ratios": [round(run["seconds"] / (count * single), 3) for run in runs],
            "peak_mib": round(median(run["peak_mib"] for run in runs)),
        }
        for count, runs in found.items()
    }
    lengths = token_lengths(options)
    for count, row in rows.items():
        row["tokens_a_row"] = padded(lengths, count, BATCH, max(1, ROWS_ON_CPU // count))
        row["tokens_a_row_in_one_pass"] = padded(lengths, count, BATCH, BATCH)
    settings = {**vars(options), "data_dir": None, "torch": torch.__version__}
    result = {
        "settings": settings,
        "alone_seconds": [round(run["seconds"], 1) for run in alone],
        "alone_peak_mib": round(median(run["peak_mib"] for run in alone)),
        "alone_tokens_a_row": padded(lengths, 1, BATCH, BATCH),
        "tokens_of_a_row": round(float(lengths.mean()), 1),
        "lanes": rows,
    }
    print(json.dumps(result, indent=2))
    (RESULTS / f"lanes-{options.name}.json").write_text(json.dumps(result, indent=2) + "\n")


def token_lengths(options: argparse.Namespace) -> Any:
    """Return the tokens of each train row."""
    table = read_table(str(options.data_dir / options.set / "train.jsonl"))
    column = next(name for name, value in table.rows[0].items() if isinstance(value, str) and name != "label")
    tokenizer = load_tokenizer(resolve_model("builtin:minilm"))
    return np.array([len(ids) for ids in tokenizer([row[column] for row in table.rows])["input_ids"]])


def padded(lengths: Any, lanes: int, batch: int, rows: int) -> float:
    """Return the mean tokens of a row with its padding, over drawn batches.

    Args:
        lengths: of all rows.
        lanes: how many draw a batch each.
        batch: rows of it.
        rows: of each lane in a pass, of like length.
    """
    rng = np.random.default_rng(0)
    means = []
    for _ in range(500):
        drawn = np.sort(rng.choice(lengths, (lanes, batch)), axis=1)
        means.append(np.mean([drawn[:, start : start + rows].max() for start in range(0, batch, rows)]))
    return round(float(np.mean(means)), 1)


def timed(options: argparse.Namespace, overrides: list[str], lanes: str | None = None) -> dict[str, float]:
    """Return the wall-clock seconds and the peak memory of a command that trains."""
    (task, _), data = SETS[options.set], options.data_dir / options.set
    test = next(path for path in (data / "test.jsonl", data / "validation.jsonl") if path.exists())
    with (data / "train.jsonl").open(encoding="utf-8") as lines:
        share = 0.2 * options.rows / sum(1 for _ in lines)
    rows: dict[str, Any] = {"train": str(data / "train.jsonl"), "test": str(test), "max_train_rows": options.rows}
    rows["selection_fraction"] = share
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(
            json.dumps({"model": "builtin:minilm", "task": task, "data": rows, "output": f"{folder}/run"})
        )
        command = [sys.executable, "-m", "peft_bidora", "train", str(recipe), *options.override, *overrides]
        command += ["--lanes", lanes] if lanes else []
        start = perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        told = process.stderr.read() if process.stderr else b""
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(told.decode())
        return {"seconds": perf_counter() - start, "peak_mib": used.ru_maxrss * 1024 / MIB}


if __name__ == "__main__":
    main()
