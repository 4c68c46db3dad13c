"""Measure the memory of one training step of each method, each in a process of its own.

    python benchmarks/memory.py                                # MiniLM's shape, random weights, batch 16 x 64

Peak is the largest resident memory of the process (on a GPU the largest allocation), step the part of it above what the
loaded model and its optimiser hold; both are medians over rounds in which the cases take turns, with the least and the
most of the peaks. Saved are the distinct
bytes that one pass keeps for its backward, state the trained parameters, their gradients and moments, and what the
search holds beside them.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from cases import Bench, add_shape_options, device_name, shape_of

CASES = ("lora", "dora-peft", "dora-ours", "retrain-ours", "search-4-one-sided", "search-1-one-sided", "search-1-exact")
MIB = 2**20


def main() -> None:
    """Measure all cases, print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser)
    parser.add_argument("--case", help="measure this case in this process, and print JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="cpu")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(options)))
        return
    rounds = [{case: in_a_process(case) for case in CASES} for _ in range(options.rounds)]
    rows: dict[str, dict[str, Any]] = {
        case: {name: median(found[case][name] for found in rounds) for name in rounds[0][case]} for case in CASES
    }
    for case, found in rows.items():
        peaks = [each[case]["peak_mib"] for each in rounds]
        found["peak_range_mib"] = [min(peaks), max(peaks)]
        found["peak_to_lora"] = round(found["peak_mib"] / rows["lora"]["peak_mib"], 3)
        print(f"{case:20}", ", ".join(f"{name} {value}" for name, value in found.items()))
    settings = {**vars(options), "torch": torch.__version__, "device_name": device_name(options)}
    output = Path(__file__).parent / "results" / f"memory-{options.name}.json"
    output.write_text(json.dumps({"settings": settings, "cases": rows}, indent=2) + "\n")


def in_a_process(case: str) -> dict[str, float]:
    """Return what a process of its own measures, with the options of this one."""
    command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Return the memory of a case in MiB."""
    bench = Bench(shape_of(options))
    step = bench.cases([options.case])[options.case]
    on_gpu = options.device == "cuda"
    loaded = torch.cuda.memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    for _ in range(3):
        step()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"peak": peak, "step": peak - loaded, "saved": saved(step), "state": state()}
    return {f"{name}_mib": round(value / MIB, 1) for name, value in found.items()}


def saved(step: Callable[[], Any]) -> int:
    """Return the most bytes of distinct storages that a pass kept for its backward, parameters left out."""
    kept: dict[int, int] = {}
    most = 0
    parameters = {each.untyped_storage().data_ptr() for each in gc.get_objects() if is_parameter(each)}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal most
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
            most = max(most, sum(kept.values()))
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        step()
    return most


def state() -> int:
    """Return the bytes of all tensors that outlive a step, the frozen weights left out."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    frozen = {each.untyped_storage().data_ptr() for each in tensors if is_parameter(each) and not each.requires_grad}
    sizes = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(size for address, size in sizes.items() if address not in frozen)


def is_parameter(value: object) -> bool:
    """Return whether an object is a parameter of a model."""
    return isinstance(value, torch.nn.Parameter)


if __name__ == "__main__":
    main()
