"""What each part of BiDoRA is worth: leave one out or put another in its place, on the same splits and seeds.

    python benchmarks/ablations.py --data-dir DIR --sets trec6 --rows 500 --seeds 5

The seeds of a variant are trained side by side. Beside settings that any recipe can have stand three that none should:
dropout masks that are not paired over the passes of a difference (the published code's fault), a row norm that is
detached from the graph of the search, and a control: the found magnitudes, as m / ‖W0‖, shuffled over the rows of each
layer before the retrain phase. If they carry nothing, shuffling costs nothing. At least 200 selection rows choose.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import torch
from methods import RESULTS, SELECTION, SETS

from peft_bidora.adapter.lanes import stack_lanes
from peft_bidora.bilevel.randomness import ReplayedLoss
from peft_bidora.quiet import quiet_libraries
from peft_bidora.recipe.lane_settings import load_settings
from peft_bidora.recipe.lanes import run_lanes
from peft_bidora.study.statistics import holm, paired_seeds
from peft_bidora.training import lanes as lanes_module

Patch = Callable[[], Any]


def main() -> None:
    """Train, print a row for each variant and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["trec6"])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--override", nargs="*", default=[], help="recipe keys of every variant")
    options = parser.parse_args()
    quiet_libraries()
    for name in options.sets:
        values = {}
        for variant in dict.fromkeys(["bidora", *options.variants]):
            values[variant] = trained(name, variant, options)
            print(name, variant, [round(value, 4) for value in values[variant]], flush=True)
        settings = {
            **vars(options),
            "data_dir": None,
            "sets": name,
            "metric": SETS[name][1],
            "torch": torch.__version__,
        }
        result = {"settings": settings, "variants": summary(values)}
        (RESULTS / f"ablations-{name}-{options.rows}.json").write_text(json.dumps(result, indent=2) + "\n")


def summary(values: dict[str, list[float]]) -> dict[str, Any]:
    """Return mean and deviation of each variant, and its paired difference to BiDoRA as it is."""
    pairs = {name: paired_seeds(own, values["bidora"]) for name, own in values.items() if name != "bidora"}
    corrected = dict(zip(pairs, holm([1.0 if pair.p is None else pair.p for pair in pairs.values()]), strict=True))
    found = {}
    for name, own in values.items():
        found[name] = {"mean": mean(own), "standard_deviation": stdev(own), "values": own}
        if name in pairs:
            found[name] |= {**asdict(pairs[name]), "p_corrected": corrected[name]}
    return found


def trained(name: str, variant: str, options: argparse.Namespace) -> list[float]:
    """Return the test metric of each seed."""
    (task, metric), data = SETS[name], options.data_dir / name
    overrides, patched = VARIANTS[variant]
    test = next(path for path in (data / "test.jsonl", data / "validation.jsonl") if path.exists())
    with (data / "train.jsonl").open(encoding="utf-8") as lines:
        share = min(0.1, max(200, SELECTION * options.rows) / sum(1 for _ in lines))
    rows = {"train": str(data / "train.jsonl"), "test": str(test), "max_train_rows": options.rows}
    with tempfile.TemporaryDirectory() as folder, patched():
        path = Path(folder) / "recipe.yaml"
        recipe = {"model": "builtin:minilm", "task": task, "data": {**rows, "selection_fraction": share}}
        path.write_text(json.dumps({**recipe, "output": f"{folder}/study"}))  # JSON is YAML
        settings = load_settings(path, [*options.override, *overrides], [f"seed=0..{options.seeds - 1}"])
        outcomes = run_lanes(settings, Path(folder) / "study")
    return [outcome.metrics["test"][metric]["value"] if outcome.metrics else float("nan") for outcome in outcomes]


@contextmanager
def unpaired() -> Iterator[None]:
    """Let each pass of a difference draw masks of its own."""
    with patch.object(ReplayedLoss, "__call__", lambda self: self.loss()):
        yield


@contextmanager
def detached() -> Iterator[None]:
    """Take the row norm out of the graph of the search, as DoRA does."""

    def stack(*arguments: Any, norm_in_graph: bool) -> Any:
        return stack_lanes(*arguments, norm_in_graph=False)

    with patch.object(lanes_module, "stack_lanes", stack):
        yield


@contextmanager
def shuffled() -> Iterator[None]:
    """Shuffle the found m / ‖W0‖ over the rows of each layer when the search ends."""
    begin, leave = lanes_module._Phase.__init__, lanes_module._Phase._leave
    initial: dict[int, dict[str, Any]] = {}

    def remember(self: Any, model: Any, lanes: Any, *arguments: Any) -> None:
        for lane in lanes:
            initial.setdefault(id(lane), {n: v.clone() for n, v in lane.values.items() if "magnitude" in n})
        begin(self, model, lanes, *arguments)

    def shuffle(self: Any, part: Any, found: dict[str, Any]) -> None:
        leave(self, part, found)
        if self._phase == "search":
            generator = torch.Generator().manual_seed(part.args.seed)
            for name, first in initial[id(part.lane)].items():
                ratio = part.lane.values[name] / first
                part.lane.values[name] = first * ratio[torch.randperm(len(ratio), generator=generator)]

    with patch.object(lanes_module._Phase, "__init__", remember), patch.object(lanes_module._Phase, "_leave", shuffle):
        yield


VARIANTS: dict[str, tuple[list[str], Patch]] = {
    "bidora": ([], nullcontext),
    "retrain from initial": (["retrain.from=initial"], nullcontext),
    "no retrain": (["retrain.steps=1", "retrain.learning_rate=1e-9", "eval_steps=1", "save_steps=1"], nullcontext),
    "first-order": (["search.hypergradient=first-order"], nullcontext),
    "xi: adam": (["search.xi=adam"], nullcontext),
    "K = 1": (["search.lower_steps=1"], nullcontext),
    "K = 8": (["search.lower_steps=8"], nullcontext),
    "γ = 0": (["adapter.orthogonality=0"], nullcontext),
    "upper fraction 0.1": (["data.upper_fraction=0.1"], nullcontext),
    "upper fraction 0.5": (["data.upper_fraction=0.5"], nullcontext),
    "magnitudes kept": (["search.upper_learning_rate=0"], nullcontext),
    "magnitudes shuffled": ([], shuffled),
    "norm detached": ([], detached),
    "masks unpaired": ([], unpaired),
}


if __name__ == "__main__":
    main()
