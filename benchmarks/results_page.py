"""Write docs/results.md from the figures in results/.

python benchmarks/results_page.py
"""

from defaults import table as defaults_table
from grid import cells
from grid import reading as grid_reading
from grid import table as grid_table
from methods import table as methods_table
from tables import RESULTS, ROOT, load, table

SURE = 0.05
INTRODUCTION = """\
# Results

Written by `python benchmarks/results_page.py` from `benchmarks/results/`: what the methods reach on real data, and what
a part of BiDoRA is worth. The cost of a step and of a run stands in [Benchmarks](benchmarks.md).
"""


def main() -> None:
    """Write the page."""
    (ROOT / "docs/results.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION, *grid(), *not_shown(), *methods(), *decomposition(), *ablations(), *defaults()]
    return "\n".join(parts).rstrip() + "\n"


def grid() -> list[str]:
    """Return the tables of grid.py."""
    found = cells()
    if not found:
        return []
    settings = found[0]["settings"]
    return [
        "## The methods, each at its own learning rate",
        "",
        f"Points (100 × the metric) on test rows, mean ± standard deviation over {settings['seeds']} seeds"
        " (`benchmarks/grid.py`, which has the settings). Each method has the one of two learning rates"
        " that was best on the selection rows of one seed. LoRA with 300 steps has about the time of BiDoRA's 80 + 150;"
        " the others take 150. Differences are paired; p is Wilcoxon's after Holm. The runs of a cell share test rows,"
        " and are no independent samples: the test over cells is the one to go by.",
        "",
        grid_table(found),
        "",
    ]


def not_shown() -> list[str]:
    """Return what was hoped for and is not seen in the figures."""
    lines = [f"- {grid_reading(cells())}"] if cells() else []
    for path in sorted(RESULTS.glob("ablations-*.json")):
        settings, found = load(path)["settings"], load(path)["variants"]
        level = [
            f"{name} ({row['difference']:+.4f}, p = {row['p_corrected']:.2f})"
            for name, row in found.items()
            if row.get("p_corrected", 0) >= SURE
        ]
        lines.append(
            f"- On {settings['sets']} with {settings['rows']} rows no difference to BiDoRA is proven over"
            f" {settings['seeds']} seeds for: {'; '.join(level)}. That the learned magnitudes matter would show in"
            " those that are kept or shuffled."
        )
    return ["## What was hoped for and not seen", "", *lines, ""] if lines else []


def methods() -> list[str]:
    """Return the table of methods.py."""
    found = [load(path) for path in sorted(RESULTS.glob("methods-*.json"))]
    said = sorted({f"{each['settings']['set']}: {' '.join(each['settings']['overrides'])}" for each in found})
    return [
        "## The methods on real data",
        "",
        "Mean ± standard deviation over seeds on the test rows; CPU seconds of LoRA's whole command, and ratios to it"
        " (`benchmarks/methods.py`). Nothing is tuned; what departs from the defaults stands below.",
        "",
        methods_table(found),
        "",
        *(f"- {each}" for each in said if not each.endswith(": ")),
        "",
    ]


def decomposition() -> list[str]:
    """Return the tables of decomposition.py."""
    parts = []
    for path in sorted(RESULTS.glob("decomposition-*.json")):
        settings, found = load(path)["settings"], load(path)["summary"]
        rows = [
            [name, f"{row['slope']:.3f}", f"{row['correlation']:.3f}", row["points"]] for name, row in found.items()
        ]
        parts += [
            f"## What training does to the weights: {settings['set']}, {settings['rows']} train rows",
            "",
            "Slope and correlation of ΔM, the mean change of a row's length, against ΔD, the mean of 1 − cosine with"
            f" the pretrained row, over the adapted layers every {settings['every']} steps"
            " (`benchmarks/decomposition.py`).",
            "",
            table(["method", "slope", "correlation", "points"], rows),
            "![ΔM against ΔD by method](images/decomposition.svg)",
            "",
        ]
    return parts


def ablations() -> list[str]:
    """Return the tables of ablations.py."""
    parts = []
    for path in sorted(RESULTS.glob("ablations-*.json")):
        settings, found = load(path)["settings"], load(path)["variants"]
        rows = [
            [
                *(name, f"{row['mean']:.4f} ± {row['standard_deviation']:.4f}"),
                f"{row['difference']:+.4f} ({row['low']:+.4f} – {row['high']:+.4f})" if "p" in row else "",
                f"{row['p_corrected']:.2f}" if "p" in row else "",
            ]
            for name, row in found.items()
        ]
        parts += [
            f"## What a part of BiDoRA is worth: {settings['sets']}, {settings['rows']} train rows",
            "",
            f"{settings['metric']} on test rows over {settings['seeds']} seeds, the paired difference to BiDoRA as it"
            f" is, and Wilcoxon's p after Holm (`benchmarks/ablations.py`; {' '.join(settings['override'])}).",
            "",
            table(["variant", settings["metric"], "difference", "p"], rows),
        ]
    return parts


def defaults() -> list[str]:
    """Return the tables of defaults.py."""
    found = [load(path) for path in sorted(RESULTS.glob("defaults-*.json"))]
    if not found:
        return []
    parts = [
        "## Settings compared on selection rows",
        "",
        "The metric of each set on selection rows, mean ± standard deviation over seeds; no test row was read"
        " (`benchmarks/defaults.py`).",
        "",
    ]
    for each in found:
        rows, selection = each["settings"]["rows"], each["settings"]["selection_rows"]
        parts += [f"{rows:,} train rows, {selection:,} selection rows.", "", defaults_table(each["runs"]), ""]
    return parts


if __name__ == "__main__":
    main()
