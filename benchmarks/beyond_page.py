"""The sections of docs/benchmarks.md on several processes and on small memory."""

from typing import Any

from tables import RESULTS, load, table

PHASES = {"search": "search step, K = 1", "retrain": "retrain step"}


def processes() -> list[str]:
    """Return the table of processes.py, and where what two processes lose goes."""
    if not (path := RESULTS / "processes-cpu.json").exists():
        return []
    settings, found = load(path)["settings"], load(path)["summary"]
    rows = [
        [
            PHASES[phase],
            *(row["milliseconds"][case] for case in ("one", "half alone", "two")),
            *(row["rows_a_second"][case] for case in ("one", "two")),
            "{median} ({least} – {most})".format(**row["throughput_of_two"]),
        ]
        for phase, row in found.items()
    ]
    search = found["search"]
    return [
        "## Two processes",
        "",
        f"An encoder of six layers of width 384, {settings['rows']} × {settings['tokens']} tokens in all, a thread a"
        " process (`benchmarks/processes.py`). Milliseconds of a step of one process, of one with half of the rows,"
        " which is what a rank computes, and of two; rows a second; the throughput of two over one, median over rounds"
        " with the least and the most.",
        "",
        table(["step", "one", "half alone", "two", "rows/s, one", "rows/s, two", "two over one"], rows),
        f"A process with half of the rows takes {search['half_over_one']} of a search step, not 0.5: that part does not"
        f" shrink with the rows. Two take {search['beyond_half_milliseconds']} ms more than that process alone;"
        f" {search['talk_milliseconds']} ms of them are in {search['calls']:.0f} reductions of"
        f" {search['mebibytes']} MiB in all, waiting for the slower one included, and the rest is lost where both"
        " compute at once on cores that share their memory and caches.",
        "",
    ]


def small_memory() -> list[str]:
    """Return the table of small_memory.py."""
    if not (path := RESULTS / "small-memory-cpu.json").exists():
        return []
    settings, found = load(path)["settings"], load(path)["cases"]
    kinds = {"encoder": "12 layers of width 768", "decoder": "16 layers of width 1024"}
    shapes = "; ".join(
        f"{name} of {kinds[name]}, {rows} × {tokens} tokens" for name, (rows, tokens) in settings["batch"].items()
    )
    rows: list[list[Any]] = []
    for name, row in found.items():
        model, method, case = name.split(", ", 2)
        base = found[f"{model}, lora, float32"]
        taken = [f"{row[key]:,}" if key == "peak_mib" else row[key] for key in ("peak_mib", "seconds")]
        rows.append([model, method, case, *taken, round(row["peak_mib"] / base["peak_mib"], 2)])
    return [
        "## Small memory",
        "",
        "Peak MiB of a process that takes search steps (K = 1; LoRA's own steps for comparison) and seconds of a"
        f" step: {shapes}, random weights, rank 16 in all linear layers, {settings['threads']} threads, each case in a"
        " process of its own (`benchmarks/small_memory.py`).",
        "",
        table(
            ["model", "method", "frozen weights and passes", "peak MiB", "s a step", "peak to LoRA in float32"], rows
        ),
        "On a CPU packing takes memory rather than saving it: each product unpacks its weight, 8 bits into float32, and"
        " the process keeps what loading the weights in float32 took. BiDoRA beyond LoRA keeps W0·W0ᵀ of layers of at"
        " most 1,024 rows for the orthogonality (`adapter.orthogonality: 0` leaves it out), and gradients of both"
        " levels.",
        "",
    ]
