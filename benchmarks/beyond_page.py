"""The sections of docs/benchmarks.md on several processes, small memory and divided weights."""

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
        of_lora, of_told = row["peak_mib"] / base["peak_mib"], row["peak_mib"] / row["told_mib"]
        rate = round(row["gflop"] / row["seconds"])
        rows.append(
            [model, method, case, f"{row['peak_mib']:,}", f"{of_lora:.2f}", f"{of_told:.2f}", row["seconds"], rate]
        )
    return [
        "## Small memory",
        "",
        "Peak MiB of a process that takes search steps (K = 1; LoRA's own steps for comparison) and seconds of a"
        f" step: {shapes}, random weights, rank 16 in all linear layers, threads: {settings['threads']}, each case in a"
        " process of its own (`benchmarks/small_memory.py`).",
        "",
        table(
            [
                "model",
                "method",
                "frozen weights and passes",
                "peak MiB",
                "to LoRA in float32",
                "to the formula",
                "s a step",
                "10⁹ operations a s",
            ],
            rows,
        ),
        "The formulae are those of [More than one device](scale.md): the peak is told as what the libraries hold,"
        " weights, trained parameters and activations, the operations as those of all passes of a step. The formula of"
        " memory leaves out what a pass needs for a moment, the gradient of each layer among it, and gaps between freed"
        " blocks.",
        "",
        "Where no weights are unpacked, operations a second agree between the two models to 13 %, so that the formula"
        " tells the time of a step once the rate of a device is known. Packed weights save less than the formula tells,"
        " since each product unpacks its weight for a moment, 8 bits into float32. BiDoRA beyond LoRA keeps W0·W0ᵀ of"
        " layers of at most 1,024 rows for the orthogonality (`adapter.orthogonality: 0` leaves it out), and"
        " gradients of both levels.",
        "",
    ]


def sharded() -> list[str]:
    """Return the tables of sharded.py."""
    if not (path := RESULTS / "sharded-cpu.json").exists():
        return []
    found = load(path)
    settings, frozen = found["settings"], found["settings"]["frozen_mib"]
    loading, steps = list[list[Any]](), list[list[Any]]()
    for name, row in found["loading"].items():
        processes, stored = name.split(", ", 1)
        held = [f"{row[key]:,}" for key in ("peak_mib", "resident_mib", "anonymous_mib")]
        own = row["anonymous_mib"] - row["anonymous_before_mib"]
        loading.append([processes, stored, round(frozen / int(processes)), *held, f"{own:,}"])
    for name, row in found["steps"].items():
        processes, passes = name.split(", ", 1)
        held = [f"{row[key]:,}" for key in ("held_mib", "peak_mib")]
        steps.append([processes, passes, *held, row["seconds"], f"{row['gathered_mib']:,}"])
    return [
        "## Frozen weights that are divided",
        "",
        f"The decoder above, {frozen:,.0f} MiB in float32 (about half of it where it is held in bfloat16), over"
        f" processes that talk by gloo, a thread each, on {settings['cores']} cores (`benchmarks/sharded.py`). MiB of"
        " a process: its part of the frozen weights in float32, 4 P / N bytes; the peak while the model is loaded,"
        " adapted and divided; then the resident memory, what of it no file backs, and what of that came with the"
        " model.",
        "",
        table(["processes", "stored in", "4 P / N", "peak of loading", "resident", "no file", "of the model"], loading),
        f"Search steps, K = 1, one row of {settings['tokens']} tokens a process: what no file backs after a step, the"
        " peak, seconds, and the MiB of whole weights that a step puts together.",
        "",
        table(["processes", "passes", "after a step", "peak", "s a step", "gathered"], steps),
        "What is held follows the formula, but for W0·W0ᵀ of layers of at most 1,024 rows, 224 MiB here, which"
        " every process keeps whole for the orthogonality, and for the adapter with its optimisers. One process"
        " reads weights in float32 where the file lies: resident, but not counted as held. A step puts the frozen"
        " weights together for each of its passes, 3 in float32 and 4 in bfloat16, and once more for its backward;"
        " the orthogonality sends none. A pass over divided weights holds more for its time: by their sizes"
        " embeddings and output, 64 MiB, until its end, and the layers that come and go, 45 MiB each, with what they"
        " are sent in. The rest are gaps that glibc keeps between freed blocks, more than half of what is held"
        " after a step of several processes; with `MALLOC_MMAP_THRESHOLD_=65536` in the environment (blocks mapped)"
        " it keeps none. The peak of loading is the whole model and such gaps, whatever the number of processes.",
        "",
    ]


def large() -> list[str]:
    """Return the tables of large.py, of each device that it ran on."""
    paths = [path for name in ("gpu", "cpu") if (path := RESULTS / f"large-{name}.json").exists()]
    return [line for path in paths for line in _large(load(path))]


def _large(found: Any) -> list[str]:
    settings, cases = found["settings"], found["cases"]
    config = settings["config"]
    methods = {"lora": "PEFT's LoRA", "dora": "PEFT's DoRA", "bidora-1": "search, K = 1", "bidora-4": "search, K = 4"}
    rows = [
        [
            methods[method],
            *(f"{row[key]:,.0f}" for key in ("loaded_mib", "peak_mib")),
            row.get("peak_to_lora", "–"),
            f"{row['seconds']:.3f}",
            row.get("seconds_to_lora", "–"),
        ]
        for method, row in cases.items()
    ]
    return [
        f"## A large model: {config['num_hidden_layers']} layers of width {config['hidden_size']}",
        "",
        f"Llama's shape, random weights in NF4, {settings['device_name']}, {settings['batch']} × {settings['tokens']}"
        f" tokens, rank {settings['rank']} in {', '.join(settings['targets'])}, bfloat16 and activation checkpointing;"
        f" rounds: {settings['rounds']}, each of {settings['steps']} steps; medians and their ratios"
        " (`benchmarks/large.py`).",
        "",
        table(["step", "loaded, MiB", "peak, MiB", "peak to LoRA's", "s", "time to LoRA's"], rows),
    ]
