"""Write docs/benchmarks.md from the figures in results/.

python benchmarks/page.py
"""

from statistics import median
from typing import Any

from beyond_page import large, processes, sharded, small_memory
from tables import RESULTS, ROOT, load, table

CASES = {
    "lora": "PEFT's LoRA",
    "dora-peft": "PEFT's DoRA",
    "dora-ours": "this layer, magnitudes trained",
    "retrain-ours": "this layer, magnitudes fixed",
    "lora-query-value": "PEFT's LoRA, query and value",
    "betty-1-query-value": "the paper's algorithm by betty-ml, query and value, K = 1",
    "predict-base": "prediction by the bare model",
    "predict-lora": "prediction, PEFT's LoRA",
    "predict-dora-peft": "prediction, PEFT's DoRA",
    "predict-ours": "prediction, this layer",
}
INTRODUCTION = """\
# Benchmarks

Written by `python benchmarks/page.py` from `benchmarks/results/`; `make bench DATA=DIR` measures all anew. What is
compared was run interleaved, in one run; a ratio of steps is that of the medians over rounds, with the quartiles of the
rounds' own ratios. What the methods reach on real data stands in [Results](results.md).
"""


def main() -> None:
    """Write the page."""
    (ROOT / "docs/benchmarks.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    parts = [
        INTRODUCTION,
        *steps(),
        *memory(),
        *small_memory(),
        *sharded(),
        *large(),
        *runs(),
        *lanes(),
        *processes(),
        *agreement(),
        *growth(),
        *fidelity(),
        misses(),
    ]
    return "\n".join(parts).rstrip() + "\n"


def steps() -> list[str]:
    """Return the tables of step.py."""
    parts = []
    for path in sorted(RESULTS.glob("step-*.json")):
        found = load(path)
        speed = found["operations_per_second"] / 1e9
        rows = [
            [
                named(case),
                f"{row['milliseconds']:.1f}",
                "" if row["floor_milliseconds"] is None else f"{row['floor_milliseconds']:.1f}",
                f"{row['ratio']:.3f} ({row['quartiles'][0]:.3f} – {row['quartiles'][1]:.3f})",
                named(row["to"]),
            ]
            for case, row in found["cases"].items()
        ]
        parts += [
            f"## A step: {shape(found['settings'])}",
            "",
            "Forward, backward, clipping and AdamW, all linear layers adapted unless said (`benchmarks/step.py`). The"
            f" floor is the counted operations at the {speed:,.0f} GFLOP/s that a large matrix product reached.",
            "",
            table(["step", "ms", "floor, ms", "ratio", "to"], rows),
        ]
    return parts


def memory() -> list[str]:
    """Return the tables of memory.py."""
    parts = []
    for path in sorted(RESULTS.glob("memory-*.json")):
        found = load(path)
        rows = [
            [
                named(case),
                *(f"{row[f'{what}_mib']:.0f}" for what in ("peak", "step", "saved", "state")),
                row["peak_to_lora"],
                " – ".join(f"{each:.0f}" for each in row.get("peak_range_mib", ())),
            ]
            for case, row in found["cases"].items()
        ]
        parts += [
            f"## The memory of a step: {shape(found['settings'])}",
            "",
            "MiB, each in a process of its own (`benchmarks/memory.py`): peak of the process; what of it a step takes"
            " above the loaded model; what a pass keeps for its backward; what outlives a step but frozen weights.",
            "",
            table(["step", "peak", "step", "saved", "state", "peak to LoRA's", "least and most peak"], rows),
        ]
    return parts


def runs() -> list[str]:
    """Return the tables of run.py."""
    parts = []
    for path in sorted(RESULTS.glob("run-*.json")):
        found = load(path)
        seeds, settings = len(found["seeds"]), found["settings"]
        rows = [
            [
                name,
                "–" if row["ratio"] is None else row["ratio"],
                f"{row['reached']} of {seeds}",
                row["whole_ratio"],
                row["best"],
            ]
            for name, row in found["summary"].items()
        ]
        lora = sum(seed["lora"]["best"] for seed in found["seeds"]) / seeds
        parts += [
            f"## Whole runs: {settings['set']}, {settings['rows']} train rows, {seeds} seeds",
            "",
            "Time until the best selection metric of the whole LoRA run is reached, over the time of that run; how"
            " often it was reached; the time of the whole run over LoRA's; mean best selection metric, LoRA's being"
            f" {lora:.4f} (`benchmarks/run.py`).",
            "",
            table(["BiDoRA", "time to LoRA's best", "reached", "whole time", "best"], rows),
        ]
    return parts


def lanes() -> list[str]:
    """Return the tables of lanes.py."""
    parts = []
    for path in sorted(RESULTS.glob("lanes-*.json")):
        found = load(path)
        settings, alone = found["settings"], median(found["alone_seconds"])
        rows = [
            [
                *(count, f"{row['seconds']:.0f}", f"{row['ratio']:.3f}", f"{row['peak_mib']:,}"),
                *(row["tokens_a_row"], row["tokens_a_row_in_one_pass"]),
            ]
            for count, row in sorted(found["lanes"].items(), key=lambda item: int(item[0]))
        ]
        parts += [
            f"## Lanes: {settings['set']}, {settings['rows']} train rows, {settings['threads']} CPU threads",
            "",
            "Whole commands of BiDoRA, loading and scoring among them: a study of lanes, and its ratio to as many runs"
            f" alone of {alone:.0f} s and {found['alone_peak_mib']:,} MiB each (`benchmarks/lanes.py`;"
            f" {' '.join(settings['override'])}). A row of {found['tokens_of_a_row']} tokens on average is"
            f" padded to {found['alone_tokens_a_row']} in a run alone; beside it what it is padded to in the passes of"
            " lanes, and what it would be in one pass of all rows.",
            "",
            table(["lanes", "s", "ratio", "peak, MiB", "tokens a row", "in one pass"], rows),
        ]
    return parts


def agreement() -> list[str]:
    """Return the tables of agreement.py."""
    parts = []
    for path in sorted(RESULTS.glob("agreement-*.json")):
        settings, found = load(path)["settings"], load(path)["found"]
        rows = [
            [
                *(name, *(f"{row[side][0]:.4f} ± {row[side][1]:.4f}" for side in ("lanes", "alone"))),
                f"{row['difference']:+.4f} ({row['interval'][0]:+.4f} – {row['interval'][1]:+.4f})",
                *(row["p_t"], row["p_wilcoxon"]),
            ]
            for name, row in found.items()
        ]
        parts += [
            f"## Lanes and single runs with dropout: {settings['set']}, {settings['seeds']} seeds",
            "",
            "Mean ± standard deviation over seeds, the paired difference with its 95 % interval, and the p-values of no"
            f" difference (`benchmarks/agreement.py`; {' '.join(settings['override'])}).",
            "",
            table(["what", "lanes", "alone", "difference", "p, t-test", "p, Wilcoxon"], rows),
        ]
    return parts


def growth() -> list[str]:
    """Return the tables of scale.py."""
    parts = []
    if (path := RESULTS / "scale-steps.json").exists():
        rows = [
            [
                row["grows"],
                named(row["case"]),
                ", ".join(
                    f"{value}: {time:.0f}" for value, time in zip(row["values"], row["milliseconds"], strict=True)
                ),
                f"{row['slope']:.2f}",
            ]
            for row in load(path)["steps"]
        ]
        parts += [
            "## How a step grows",
            "",
            "Milliseconds by what grows, and the slope of their logarithms: 1 is linear (`benchmarks/scale.py steps`).",
            "",
            table(["grows", "step", "ms", "slope"], rows),
        ]
    if (path := RESULTS / "scale-runs.json").exists():
        rows = [[f"{row['rows']:,}", row["steps"], row["seconds"], row["peak_mib"]] for row in load(path)["runs"]]
        parts += [
            "## How a run grows",
            "",
            "With the rows of its file and the steps of each phase (`benchmarks/scale.py runs`).",
            "",
            table(["rows", "steps", "training, s", "peak, MiB"], rows),
        ]
    return parts


def fidelity() -> list[str]:
    """Return the table of fidelity.py."""
    rows = [
        [row["estimator"], row["precision"], row["radius"], f"{row['cosine']:.4f}", f"{row['norm_ratio']:.3f}"]
        for row in load(RESULTS / "fidelity.json")["rows"]
    ]
    return [
        "## How true the hypergradient is",
        "",
        "The implicit term against the exact mixed product, on TREC questions, a 6-layer encoder and dropout 0.1"
        " (`benchmarks/fidelity.py`).",
        "",
        table(["estimator", "precision", "radius", "cosine", "norm ratio"], rows),
    ]


def misses() -> str:
    """Return what was aimed at and not reached, by how much, and where the time or the memory goes."""
    steps, coarse = (load(RESULTS / f"step-{name}.json")["cases"] for name in ("cpu", "cpu-bfloat16"))
    run, found = load(RESULTS / "run-trec6-500.json")["summary"]["default"], load(RESULTS / "lanes-cpu.json")["lanes"]
    search, retrain = (steps[name]["ratio"] for name in ("search-4-one-sided", "retrain-ours"))
    whole, share = (200 * search + 300 * retrain) / 300, 200 * search / (200 * search + 300 * retrain)
    prediction, lora = steps["predict-ours"]["ratio"], steps["predict-lora"]["ratio"]
    reached = run["reached"] >= 2 and run["ratio"] is not None
    peaks = load(RESULTS / "memory-cpu.json")["cases"]
    four, one = (peaks[f"search-{k}-one-sided"] for k in (4, 1))
    aims = {
        f"- The peak memory of a process that takes search steps is {four['peak_to_lora']} of LoRA's with K = 4 and"
        f" {one['peak_to_lora']} with K = 1; the aim was 1.05. Of one case it varies by"
        f" {max(one['peak_range_mib']) - min(one['peak_range_mib']):.0f} MiB from process to process; what a step takes"
        f" above the loaded model, {four['step_mib']:.0f} and {one['step_mib']:.0f} MiB, is that of LoRA,"
        f" {peaks['lora']['step_mib']:.0f}.": max(four["peak_to_lora"], one["peak_to_lora"]) <= 1.05,
        f"- Prediction by the unmerged adapter takes {prediction} of the bare model's time; the aim was 1.10. LoRA's"
        f" takes {lora}: what is left are two narrow products and one pass over each output. `merge` leaves"
        " nothing.": prediction <= 1.10,
        f"- A whole run reaches LoRA's best selection metric after {run['ratio']} times the time of the LoRA run, on"
        f" {run['reached']} of three seeds; the aim was 1.8. By the steps above, 200 of the search and 300 of the"
        f" retrain phase take {whole:.2f} times 300 of LoRA's, {100 * share:.0f} % of it the"
        " search.": reached and run["ratio"] <= 1.8,
        f"- Sixteen lanes take {found['16']['ratio']} of sixteen runs; the aim was 0.4 on this CPU. A matrix product of"
        " a single run of 16 rows reaches the speed of the cores already, so that lanes save padding, the start of"
        " processes and what a layer costs beside its products; they were made for devices that one run leaves idle,"
        " and none of those was at hand.": found["16"]["ratio"] <= 0.4,
        f"- Under bfloat16 autocast a step with magnitudes trained takes {coarse['dora-ours']['ratio']} of LoRA's time,"
        f" and with them fixed {coarse['retrain-ours']['ratio']}; the aims were 1.10 and 1.03. Products are three times"
        " as fast there, and the passes over each output are not. PEFT's DoRA takes"
        f" {coarse['dora-peft']['ratio']}.": coarse["dora-ours"]["ratio"] <= 1.10
        and coarse["retrain-ours"]["ratio"] <= 1.03,
        "- Nothing was measured on a GPU, and no kernel was written for one.": False,
    }
    lines = [line for line, is_reached in aims.items() if not is_reached]
    return "\n".join(["## What was aimed at and missed", "", *lines, ""])


def named(case: str) -> str:
    """Return the words for a case: `search-4-one-sided` is a search step with K = 4."""
    if not case.startswith("search-"):
        return CASES.get(case, case)
    _, k, estimator = case.removesuffix(", to betty").split("-", 2)
    part = ", query and value" if estimator.endswith("-query-value") else ""
    return f"search, {estimator.removesuffix('-query-value')}, K = {k}{part}"


def shape(settings: dict[str, Any]) -> str:
    """Return the words for the settings of a step."""
    return (
        f"{settings['layers']} layers of width {settings['width']}, {settings['batch']} × {settings['length']} tokens,"
        f" rank {settings['rank']}, {settings['precision']}, {settings['device_name']}"
        f"{', compiled' if settings.get('compile') else ''}"
    )


if __name__ == "__main__":
    main()
