"""Train LoRA, DoRA and BiDoRA on real data sets over seeds: a process a method, its seeds side by side as lanes.

    python benchmarks/methods.py --data-dir DIR --sets cola rte --rows 1000 --seeds 3
    python benchmarks/methods.py --table

DIR/SET has train.jsonl and test.jsonl, or validation.jsonl, which then serves as the test file. All methods see the
same splits of a seed and keep the checkpoint that is best on the selection split; nothing is tuned here. Each set has a
file of results of its own, `results/methods-SET-ROWS.json`; `--table` prints all of them as Markdown. Times are CPU
seconds of the whole command by its seeds, imports and scoring included, which other work on the machine changes little.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

SELECTION = 0.1  # selection rows for each train row, where those are limited
RESULTS = Path(__file__).parent / "results"
METHODS = ("lora", "dora", "bidora")
CLASSES, REGRESSION, ENTITIES = "sequence-classification", "regression", "token-classification"
TEXTS = "text-generation"
# The task of each set and the metric that its papers report.
SETS: dict[str, tuple[str, str]] = {
    "cola": (CLASSES, "matthews"),
    "rte": (CLASSES, "accuracy"),
    "mrpc": (CLASSES, "accuracy"),
    "stsb": (REGRESSION, "pearson"),
    "sst2": (CLASSES, "accuracy"),
    "trec6": (CLASSES, "accuracy"),
    "reuters_r8": (CLASSES, "accuracy"),
    "wnut17": (ENTITIES, "f1"),
    "jnlpba": (ENTITIES, "f1"),
    "mic_ecoli": (REGRESSION, "mse"),
    "bbp": (CLASSES, "accuracy"),
    "e2e_nlg": (TEXTS, "bleu"),
}
PROTEINS = ("mic_ecoli", "bbp")


def main() -> None:
    """Run, print the figures and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rows", type=int, help="train rows, drawn before the upper split is; all unless set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="builtin:minilm", help="as in a recipe; e2e_nlg needs one that writes")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="recipe keys, such as search.steps=60")
    parser.add_argument("--table", action="store_true", help="print what was measured before, and run nothing")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(path.read_text()) for path in sorted(RESULTS.glob("methods-*.json"))]))
        return
    if options.data_dir is None:
        parser.error("--data-dir is missing")
    for name in options.sets:
        measured = measure(name, options)
        (RESULTS / f"methods-{name}-{options.rows or 'all'}.json").write_text(json.dumps(measured, indent=2) + "\n")
        print(table([measured]), flush=True)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the runs of every method on a set, seed by seed, and their summary."""
    (task, metric), data = SETS[name], options.data_dir / name
    test = next(path for path in (data / "test.jsonl", data / "validation.jsonl") if path.exists())
    rows = {"train": str(data / "train.jsonl"), "test": str(test), "max_train_rows": options.rows}
    if options.rows is not None:  # not a tenth of a file of which most is left out
        with (data / "train.jsonl").open(encoding="utf-8") as lines:
            rows["selection_fraction"] = min(0.1, SELECTION * options.rows / sum(1 for _ in lines))
    if name in PROTEINS:
        rows["sequences"] = "protein"
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        recipe = {"model": options.model, "task": task, "data": rows, "output": f"{folder}/run"}
        path.write_text(json.dumps(recipe))  # JSON is YAML
        for method in options.methods:
            overrides = [*options.overrides, f"method={method}", f"output={folder}/{method}"]
            runs += [{"method": method, **run} for run in train(path, overrides, options.seeds)]
            said = [run["test"][metric]["value"] for run in runs[-options.seeds :]]
            print(name, method, said, round(runs[-1]["cpu_seconds"]), flush=True)
    settings = {"set": name, "task": task, "metric": metric, "rows": options.rows, "overrides": options.overrides}
    return {
        "settings": settings,
        "summary": [summary(runs, method, metric) for method in options.methods],
        "runs": runs,
    }


def train(recipe: Path, overrides: list[str], seeds: int) -> list[dict[str, Any]]:
    """Return the metrics of a run for each seed, trained side by side, and an equal share of the CPU time for each."""
    command = [sys.executable, "-m", "peft_bidora", "train", str(recipe), *overrides, "--json"]
    before = cpu_seconds_of_children()
    finished = subprocess.run(
        [*command, "--lanes", f"seed=0..{seeds - 1}"], capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise SystemExit(finished.stderr)
    seconds = (cpu_seconds_of_children() - before) / seeds
    keys = ("selection", "test", "kept", "peak_memory_bytes", "trainable_parameters")
    return [
        {"seed": seed, **{key: run.get(key) for key in keys}, "cpu_seconds": round(seconds, 1)}
        for seed, run in enumerate(json.loads(finished.stdout))
    ]


def cpu_seconds_of_children() -> float:
    """Return the time that all cores gave to the processes of this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(runs: list[dict[str, Any]], method: str, metric: str) -> dict[str, Any]:
    """Return the mean of the metric over seeds, and the CPU time of a seed as a ratio to LoRA's."""
    own = [run for run in runs if run["method"] == method]
    lora = next((run.get("cpu_seconds") for run in runs if run["method"] == "lora"), None)
    seconds = own[0].get("cpu_seconds")
    values = [run["test"][metric]["value"] for run in own]
    return {
        "method": method,
        "mean": round(mean(values), 4),
        "standard_deviation": round(stdev(values), 4) if len(values) > 1 else None,
        "cpu_seconds": seconds,
        "time_over_lora": round(seconds / lora, 2) if lora and seconds else None,
        "peak_memory_mib": round(max(run["peak_memory_bytes"] for run in own) / 2**20),
    }


def table(measured: list[dict[str, Any]]) -> str:
    """Return Markdown: a row a set, the mean ± standard deviation of each method and its time over LoRA's."""
    lines = [
        "| set | train rows, at most | seeds | metric | " + " | ".join(f"{name} | time" for name in METHODS) + " |",
        "| --- " * (4 + 2 * len(METHODS)) + "|",
    ]
    for one in measured:
        settings, runs = one["settings"], one["runs"]
        found = {name: summary(runs, name, settings["metric"]) for name in dict.fromkeys(run["method"] for run in runs)}
        seeds = len({run["seed"] for run in one["runs"]})
        cells = [settings["set"], settings["rows"] or "all", seeds, settings["metric"]]
        for name in METHODS:
            row = found.get(name)
            deviation = row and row["standard_deviation"]
            score = row and f"{row['mean']:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")
            timed = row and row["cpu_seconds"] is not None
            time = timed and (f"{row['cpu_seconds']:.0f} s" if name == "lora" else f"× {row['time_over_lora']}")
            cells += [score or "–", time or "–"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
