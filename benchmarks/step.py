"""Time one training step of each method on the same encoder, interleaved: ratios to PEFT's LoRA.

    python benchmarks/step.py                                  # MiniLM's shape, random weights, batch 16 x 64
    python benchmarks/step.py --layers 12 --width 768 --device cuda --precision bfloat16 --name gpu

A round runs every case once in a new order; a ratio is that of the medians over rounds, beside it the quartiles of the
rounds' own ratios. A prediction is compared with that of the bare model. The floor of a case is its counted operations
at the speed that a large matrix product reaches in the same run.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from cases import CYCLE, Bench, add_shape_options, clock, device_name, shape_of
from torch.utils.flop_counter import FlopCounterMode

SIDE = 2048  # of the matrices whose product measures the speed of the device


def main() -> None:
    """Time all cases, print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", help="words that the cases to run have in their names")
    parser.add_argument("--compile", action="store_true", help="take the passes through torch.compile")
    parser.add_argument("--name", default="cpu")
    options = parser.parse_args()
    bench = Bench(shape_of(options))
    timed = bench.cases(options.only)
    operations = {name: counted_operations(case) for name, case in timed.items()}
    if options.compile:  # after counting: the operations of a compiled graph go uncounted
        bench.compile = True
        for case in timed.values():
            case()
    product = matrix_product(options)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    speeds = []
    for _ in range(options.rounds):
        speeds.append(2 * SIDE**3 / clock(product, options.device))
        for name in random.sample(list(timed), len(timed)):
            seconds[name].append(clock(timed[name], options.device))
    speed = max(speeds)
    rows = {
        name: {**row(name, seconds, bench.reference[name]), "floor_milliseconds": round(1e3 * count / speed, 1)}
        for name, count in operations.items()
    }
    for name, found in rows.items():
        floor = found["floor_milliseconds"]
        print(f"{name:32} {found['milliseconds']:9.1f} ms, floor {floor:.1f}, {found['ratio']} to {found['to']}")
    if "betty-1-query-value" in timed:
        compared = row("search-1-one-sided-query-value", seconds, "betty-1-query-value")
        rows["search-1-one-sided-query-value, to betty"] = {**compared, "floor_milliseconds": None}
    settings = {**vars(options), "torch": torch.__version__, "device_name": device_name(options)}
    result = {"settings": settings, "operations_per_second": round(speed), "cases": rows}
    output = Path(__file__).parent / "results" / f"step-{options.name}.json"
    output.write_text(json.dumps(result, indent=2) + "\n")


def counted_operations(case: Callable[[], Any]) -> float:
    """Return the floating-point operations of a step: those of the matrix products and of attention."""
    case()
    with FlopCounterMode(display=False) as counter:
        case()
    return counter.get_total_flops() / CYCLE


def matrix_product(options: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """Return a large product in the precision of the steps."""
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    square = torch.randn(SIDE, SIDE, device=options.device).to(dtype)
    return lambda: square @ square


def row(name: str, seconds: dict[str, list[float]], reference: str) -> dict[str, Any]:
    """Return the median milliseconds a step, the ratio of the medians and the quartiles of the ratios of each round."""
    own, other = seconds[name], seconds[reference]
    lower, _, upper = (round(value, 3) for value in quantiles([a / b for a, b in zip(own, other, strict=True)], n=4))
    return {
        "milliseconds": round(1e3 * median(own) / CYCLE, 1),
        "ratio": round(median(own) / median(other), 3),
        "quartiles": [lower, upper],
        "to": reference,
    }


if __name__ == "__main__":
    main()
