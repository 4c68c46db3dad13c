"""Measure what the orthogonality regulariser adds to a lower step of a 12-layer, 768-wide encoder.

    python benchmarks/regularizer.py [--rounds 5] [--rows 16] [--tokens 64]

A step is forward and backward of query and value adapters, rank 8, on random tokens; with and without the gradient of
the regulariser, in turn, in one process. The figure is the median over rounds of (with − without) / without.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter, head_modules
from peft_bidora.adapter.regularizer import OrthogonalityRegularizer


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=1000, max_position_embeddings=514))
    model = attach_adapter(model, AdapterOptions(), use_dora=True, task_type="SEQ_CLS", head=head_modules(model))
    regularizer = OrthogonalityRegularizer(model)
    batch = {
        "input_ids": torch.randint(5, 1000, (options.rows, options.tokens)),
        "labels": torch.randint(0, 2, (options.rows,)),
    }
    step(model, batch)
    regularizer.add_gradient(1e-5, 0)
    rounds = []
    for _ in range(options.rounds):
        plain = timed(lambda: step(model, batch))
        added = timed(lambda: regularizer.add_gradient(1e-5, 0))
        rounds.append({"step_seconds": plain, "regularizer_seconds": added, "share": added / plain})
    result = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": options.rows,
        "tokens": options.tokens,
        "median_step_seconds": median(row["step_seconds"] for row in rounds),
        "median_share": median(row["share"] for row in rounds),
        "rounds": rounds,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=2))
    output = Path(__file__).parent / "results" / "regularizer.json"
    output.write_text(json.dumps(result, indent=2) + "\n")


def step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Run one lower pass."""
    model.zero_grad()
    model(**batch).loss.backward()


def timed(function: Any) -> float:
    """Return the seconds that a call takes."""
    start = perf_counter()
    function()
    return perf_counter() - start


if __name__ == "__main__":
    main()
