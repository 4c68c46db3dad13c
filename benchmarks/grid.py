"""Compare LoRA, DoRA and BiDoRA over real sets, sizes and seeds, each at its own learning rate.

    python benchmarks/grid.py run --data-dir DIR --sets cola rte --rows 200 1000
    python benchmarks/grid.py table

DIR/SET has train.jsonl and test.jsonl, or validation.jsonl, which then serves as the test file; at most 500 of its
rows, drawn once, are scored. A cell, a set at a size, is one command `peft-bidora compare`: the rates are chosen on the
selection rows of one seed, with as many trials for each method, and all seeds are trained at them. BiDoRA's search
comes on top of its steps: LoRA is there with twice the steps too, which takes about as long. Each cell has a file
`results/grid-SET-ROWS.json`; `table` draws them together, and tests the differences over set x size x seed and, since
the seeds of a cell share test rows, over cells.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from methods import CLASSES, ENTITIES, REGRESSION, RESULTS

from peft_bidora.study.statistics import holm, paired_seeds

TEST_ROWS = 500
LORA, TWICE = "lora", "lora retrain.steps=300"
METHODS = (LORA, "dora", "bidora", TWICE)
DIFFERENCES = (("bidora", "dora"), ("bidora", LORA), ("bidora", TWICE), ("dora", LORA), (TWICE, LORA))
SHARED = {
    "search": {"steps": 80, "lower_steps": 2, "batch_size": 8},
    "retrain": {"steps": 150, "batch_size": 8},
    "precision": "bfloat16",
    "eval_steps": 50,
    "save_steps": 50,
}
ALL_LAYERS = {"adapter": {"target_modules": "all-linear"}}
RATES, RATES_OF_ALL_LAYERS = "0.2,0.6", "0.1,0.3"  # times 5e-3 and, of the magnitudes, 2e-2
# Of each set: task, metric, most tokens of a row, and what of the recipe is otherwise. Where query and value alone
# leave every method at chance in so few steps, all linear layers are adapted.
SETS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "cola": (CLASSES, "matthews", 32, ALL_LAYERS),
    "rte": (CLASSES, "accuracy", 56, {}),
    "mrpc": (CLASSES, "accuracy", 56, {}),
    "stsb": (REGRESSION, "pearson", 40, {}),
    "sst2": (CLASSES, "accuracy", 40, {}),
    "trec6": (CLASSES, "accuracy", 24, {}),
    "wnut17": (ENTITIES, "f1", 40, ALL_LAYERS),
    "mic_ecoli": (REGRESSION, "pearson", 48, {}),
    "reuters_r8": (CLASSES, "accuracy", 56, {}),
    "jnlpba": (ENTITIES, "f1", 40, {}),
    "bbp": (CLASSES, "accuracy", 48, {}),
}
PROTEINS = ("mic_ecoli", "bbp")


def main() -> None:
    """Run cells, or print the table of those that were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.what == "table":
        print(table(cells()))
        return
    if options.data_dir is None:
        parser.error("--data-dir is missing")
    for rows in options.rows:
        for name in options.sets:
            found = cell(name, rows, options)
            (RESULTS / f"grid-{name}-{rows}.json").write_text(json.dumps(found, indent=2) + "\n")
            print(
                name,
                rows,
                found.get("failed", ""),
                {one["label"]: (one["rate"], one["mean"], one["seconds"]) for one in found["methods"]},
            )
            sys.stdout.flush()


def cell(name: str, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the comparison of all methods on a set at a size; no methods where it cannot be, with the reason."""
    task, metric, longest, own = SETS[name]
    data = options.data_dir / name
    test = next(path for path in (data / "test.jsonl", data / "validation.jsonl") if path.exists())
    with (data / "train.jsonl").open(encoding="utf-8") as lines:
        all_rows = sum(1 for _ in lines)
    lines = test.read_text(encoding="utf-8").splitlines(keepends=True)
    selection = 0.2 if rows <= 200 else 0.1  # of the rows of the cell
    rates = RATES_OF_ALL_LAYERS if own is ALL_LAYERS else RATES
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "test.jsonl"
        drawn.write_text("".join(random.Random(0).sample(lines, min(TEST_ROWS, len(lines)))), encoding="utf-8")
        recipe = {
            **SHARED,
            **own,
            "model": "builtin:minilm",
            "task": task,
            "select_by": metric,
            "data": {
                "train": str(data / "train.jsonl"),
                "test": str(drawn),
                "max_length": longest,
                "max_train_rows": rows,
                "selection_fraction": min(0.2, selection * rows / all_rows),
                **({"sequences": "protein"} if name in PROTEINS else {}),
            },
            "output": f"{folder}/compared",
        }
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps(recipe))  # JSON is YAML
        command = [sys.executable, "-m", "peft_bidora", "compare", str(path), "--methods", ",".join(METHODS), "--json"]
        command += ["--seeds", str(options.seeds), "--tuning-seeds", "1", "--rates", rates]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            settings = {"set": name, "rows": rows, "metric": metric}
            return {"settings": settings, "methods": [], "failed": finished.stderr.strip().splitlines()[-1]}
    found = json.loads(finished.stdout)
    kept = ("label", "rate", "selection_by_rate", "values", "mean", "standard_deviation", "seconds")
    return {
        "settings": {"set": name, "rows": rows, "metric": metric, "seeds": options.seeds, "rates": rates},
        "train_rows": found["methods"][0]["runs"][0]["rows"],
        "methods": [{key: method[key] for key in kept} for method in found["methods"]],
    }


def cells() -> list[dict[str, Any]]:
    """Return the cells that were run, set by set."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("grid-*.json"))]


def table(found: list[dict[str, Any]]) -> str:
    """Return Markdown: a row a cell in points, then the tests of the differences over all of them."""
    failed = [one for one in found if not one["methods"]]  # a class has too few rows, say
    found = [one for one in found if one["methods"]]
    labels = [method["label"] for method in found[0]["methods"]]
    lines = ["| set | rows | metric | " + " | ".join(labels) + " |", "| --- " * (3 + len(labels)) + "|"]
    for one in found:
        settings = one["settings"]
        scores = [f"{mean(points(one, label)):.1f} ± {stdev(points(one, label)):.1f}" for label in labels]
        lines.append("| " + " | ".join([settings["set"], str(settings["rows"]), settings["metric"], *scores]) + " |")
    means = [mean(mean(points(one, label)) for one in found) for label in labels]
    lines.append("| mean | | | " + " | ".join(f"{value:.1f}" for value in means) + " |")
    lines += [
        "",
        "| difference | points, over set × size × seed | p | over cells | p | cells won |",
        "| --- " * 6 + "|",
    ]
    rows = []
    for label, other in DIFFERENCES:
        all_runs, of_cells, by_cell = compared(found, label, other)
        rows.append((f"{label} − {other}", all_runs, of_cells, f"{sum(a > b for a, b in by_cell)} of {len(by_cell)}"))
    corrected = [holm([1.0 if row[at].p is None else row[at].p for row in rows]) for at in (1, 2)]
    for (name, all_runs, of_cells, won), p, p_of_cells in zip(rows, *corrected, strict=True):
        lines.append(f"| {name} | {told(all_runs)} | {p:.2g} | {told(of_cells)} | {p_of_cells:.2g} | {won} |")
    for one in failed:
        lines += ["", f"{one['settings']['set']} with {one['settings']['rows']} rows is left out: {one['failed']}"]
    return "\n".join(lines)


def compared(found: list[dict[str, Any]], label: str, other: str) -> tuple[Any, Any, list[tuple[float, float]]]:
    """Return a difference over all runs, over cells, and the two means of each cell."""
    pairs = [pair for one in found for pair in zip(points(one, label), points(one, other), strict=True)]
    by_cell = [(mean(points(one, label)), mean(points(one, other))) for one in found]
    all_runs, of_cells = (paired_seeds(*map(list, zip(*each, strict=True))) for each in (pairs, by_cell))
    return all_runs, of_cells, by_cell


def points(one: dict[str, Any], label: str) -> list[float]:
    """Return the metric of each seed of a cell, times 100."""
    method = next(each for each in one["methods"] if each["label"] == label)
    return [100 * value for value in method["values"]]


def reading(found: list[dict[str, Any]]) -> str:
    """Return in words what BiDoRA is worth against the others, and against LoRA in the same time."""
    found = [one for one in found if one["methods"]]
    (lora, *_), (dora, *_), (twice, _, by_cell) = (compared(found, "bidora", each) for each in (LORA, "dora", TWICE))
    ahead = sum(a > b for a, b in by_cell)
    verdict = (
        "so that nothing shows that BiDoRA is worth more than the steps of its search"
        if twice.low <= 0 <= twice.high
        else f"so that BiDoRA is {'better' if twice.low > 0 else 'worse'} than as long a LoRA run"
    )
    return (
        f"With the same steps of the last phase BiDoRA is {dora.difference:+.1f} points from DoRA and"
        f" {lora.difference:+.1f} from LoRA. Its search comes on top of these, and the last phase goes on from it:"
        f" against LoRA given about the same time it stands at {twice.difference:+.1f} points ({twice.low:+.1f} –"
        f" {twice.high:+.1f}), ahead in {ahead} of {len(by_cell)} cells, {verdict}."
    )


def told(pair: Any) -> str:
    """Return a difference and its interval."""
    return f"{pair.difference:+.2f} ({pair.low:+.2f} – {pair.high:+.2f})"


if __name__ == "__main__":
    main()
