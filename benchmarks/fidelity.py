"""Compare every estimator with the exact mixed product on a real encoder with dropout 0.1.

    python benchmarks/fidelity.py --data-dir DIR       of DIR/trec6

Cosine and norm ratio of the implicit term, in float32 and under bfloat16 autocast, over several batches; and the same
with unpaired dropout masks, the fault of the published release.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter, head_modules
from peft_bidora.adapter.layer import set_norm_in_graph
from peft_bidora.adapter.parameters import split_levels
from peft_bidora.bilevel.hypergradient import (
    BilevelProblem,
    central_difference_hypergradient,
    default_radius,
    exact_hypergradient,
    one_sided_difference_hypergradient,
)
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state, set_random_state
from peft_bidora.bilevel.tensors import cosine, norm
from peft_bidora.data.columns import resolve_columns
from peft_bidora.data.examples import read_examples
from peft_bidora.data.labels import label_names
from peft_bidora.data.source import read_table
from peft_bidora.tasks.base_model import load_tokenizer, resolve_model
from peft_bidora.tasks.sequence_classification import SequenceClassification


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--warm-up-steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "fidelity.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    model, batches = prepare(options)
    results = []
    for precision in (getattr(torch, name) for name in options.precisions):
        for name, radius in cases(precision):
            pairs = [compare(model, low, up, precision, name, radius) for low, up in batches]
            row = {
                "estimator": name,
                "precision": str(precision).removeprefix("torch."),
                "radius": radius,
                "cosine": median(pair[0] for pair in pairs),
                "norm_ratio": median(pair[1] for pair in pairs),
                "lowest_cosine": min(pair[0] for pair in pairs),
            }
            results.append(row)
            print(json.dumps(row))
    options.output.write_text(json.dumps({"torch": torch.__version__, "rows": results}, indent=2) + "\n")


def cases(precision: torch.dtype) -> list[tuple[str, float]]:
    """Return (estimator, radius): the default radius first."""
    default = default_radius(precision)
    return [("central", default), ("one-sided", default), ("central, unpaired masks", default)]


def compare(
    model: Any, lower: Any, upper: Any, precision: torch.dtype, name: str, radius: float
) -> tuple[float, float]:
    """Return cosine and norm ratio of an estimator's implicit term against the exact one in float32."""
    state = capture_random_state()
    exact = exact_hypergradient(problem(model, lower, upper, torch.float32, paired=True), xi=1.0)
    set_random_state(state)
    estimator: Callable[..., Any] = (
        one_sided_difference_hypergradient if name == "one-sided" else central_difference_hypergradient
    )
    estimate = estimator(problem(model, lower, upper, precision, paired="unpaired" not in name), xi=1.0, radius=radius)
    set_random_state(state)
    torch.rand(1)  # the next batch sees other masks
    return cosine(estimate.implicit, exact.implicit).item(), (norm(estimate.implicit) / norm(exact.implicit)).item()


def problem(model: Any, lower: Any, upper: Any, precision: torch.dtype, paired: bool) -> BilevelProblem:
    """Return the problem of one batch of each level; unpaired passes draw new masks each time."""

    def loss(batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            return model(**batch).loss

    levels = split_levels(model)
    lower_loss: Any = partial(loss, lower)
    return BilevelProblem(
        [ReplayedLoss(lower_loss, capture_random_state()) if paired else lower_loss],
        [partial(loss, upper)],
        list(levels.direction.values()),
        list(levels.magnitude.values()),
    )


def prepare(options: argparse.Namespace) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return an adapted encoder after a few lower steps, in training mode, and pairs of batches."""
    source = resolve_model("builtin:minilm")
    tokenizer = load_tokenizer(source)
    table = read_table(options.data_dir / "trec6" / "train.jsonl")
    examples = read_examples(table, resolve_columns(table, None, None)[0])
    names = label_names(examples)
    base = SequenceClassification(tuple(names)).load_model(source, tokenizer, attn_implementation="eager")
    model = attach_adapter(base, AdapterOptions(), use_dora=True, task_type="SEQ_CLS", head=head_modules(base))
    set_norm_in_graph(model, True)
    model.train()

    def batch(start: int) -> Any:
        rows = range(start, start + options.batch_size)
        texts = [list(side) for side in zip(*(examples.texts[i] for i in rows), strict=True)]
        encoded = tokenizer(*texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        return {**encoded, "labels": torch.tensor([names.index(examples.required_labels()[i]) for i in rows])}

    size = options.batch_size
    direction = list(split_levels(model).direction.values())
    optimizer = torch.optim.AdamW(direction, lr=5e-3)
    for step in range(options.warm_up_steps):  # B = 0 at the start, where the mixed product is not typical
        gradient = torch.autograd.grad(model(**batch(step * size)).loss, direction)
        for parameter, part in zip(direction, gradient, strict=True):
            parameter.grad = part
        optimizer.step()
    first = options.warm_up_steps * size
    return model, [(batch(first + 2 * i * size), batch(first + (2 * i + 1) * size)) for i in range(options.batches)]


if __name__ == "__main__":
    main()
