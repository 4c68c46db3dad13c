"""What each method does to the weights while it trains: ΔM against ΔD, over layers and steps.

    python benchmarks/decomposition.py --data-dir DIR --set trec6 --rows 500

All methods see the same rows and take the same steps of their last phase. The adapted layers are measured every
`--every` steps: ΔM, the mean change of a row's length, and ΔD, the mean of 1 − cosine with the pretrained row. Slope
and correlation are of all points of a method.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from methods import RESULTS, SETS
from transformers import TrainerCallback

from peft_bidora.quiet import quiet_libraries
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import make_trainer
from peft_bidora.report.svg import COLOURS, drawn
from peft_bidora.study.decomposition import Change, decompose_adapter, decompose_full, slope_and_correlation

METHODS = ("full", "lora", "dora", "bidora")
FIGURE = Path(__file__).parents[1] / "docs/images/decomposition.svg"


class Measure(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Keep what the layers are like every so many steps of the last phase."""

    def __init__(self, every: int, measure: Callable[[], list[Change]]) -> None:
        self.every, self.measure = every, measure
        self.found: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if Path(args.output_dir).name == "retrain" and state.global_step % self.every == 0:
            self.found += [{"step": state.global_step, **asdict(change)} for change in self.measure()]


def main() -> None:
    """Train, print slopes and correlations, and write the JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--set", default="trec6", choices=SETS)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--every", type=int, default=30)
    parser.add_argument("--override", nargs="*", default=[], help="recipe keys of every method")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="the others stay as kept")
    parser.add_argument("--full-rate", type=float, default=5e-5, help="learning rate of full fine-tuning")
    options = parser.parse_args()
    quiet_libraries()
    kept = RESULTS / f"decomposition-{options.set}-{options.rows}.json"
    before = json.loads(kept.read_text())["points"] if len(options.methods) < len(METHODS) else {}
    points = {method: measured(options, method) if method in options.methods else before[method] for method in METHODS}
    summary = {}
    for method, found in points.items():
        changes = [Change(each["layer"], *(each[key] for key in list(each)[2:])) for each in found]
        slope, correlation = slope_and_correlation(changes)
        summary[method] = {"slope": round(slope, 4), "correlation": round(correlation, 4), "points": len(changes)}
        print(method, summary[method], flush=True)
    settings = {**vars(options), "data_dir": None, "methods": METHODS, "torch": torch.__version__}
    result = {"settings": settings, "summary": summary, "points": points}
    kept.write_text(json.dumps(result, indent=1) + "\n")
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_text(figure(points), encoding="utf-8")


def measured(options: argparse.Namespace, method: str) -> list[dict[str, Any]]:
    """Return step, layer, ΔM and ΔD of a method's run."""
    (task, _), data = SETS[options.set], options.data_dir / options.set
    rows = {"train": str(data / "train.jsonl"), "test": str(data / "test.jsonl"), "max_train_rows": options.rows}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        recipe = {"model": "builtin:minilm", "task": task, "data": rows, "output": f"{folder}/run"}
        path.write_text(json.dumps({**recipe, "method": method}))  # JSON is YAML
        rate = [f"retrain.learning_rate={options.full_rate}"] if method == "full" else []
        loaded = load_recipe(path, ["select_best=false", *options.override, *rate])
        loaded.output.mkdir()
        prepared = prepare(loaded)
        trainer = make_trainer(prepared)
        model = trainer.model
        if method == "full":
            # Those that an adapter would change.
            adapted = prepare(load_recipe(path, [*options.override, "method=lora"])).target_modules
            layers = [name for name, _ in model.named_modules() if name.endswith(tuple(adapted))]
            modules = dict(model.named_modules())
            pretrained = {name: modules[name].weight.detach().clone() for name in layers}
            callback = Measure(options.every, lambda: decompose_full(model, pretrained, layers))
        else:
            callback = Measure(options.every, lambda: decompose_adapter(model))
        trainer.add_callback(callback)
        trainer.train()
    return callback.found


def figure(points: dict[str, list[dict[str, Any]]]) -> str:
    """Return the scatter of all methods as an SVG file of its own."""

    def draw(axes: Any) -> None:
        for colour, (method, found) in zip(COLOURS, points.items(), strict=False):
            relative, turned = [p["relative_magnitude"] for p in found], [p["direction"] for p in found]
            axes.plot(turned, relative, "o", color=colour, markersize=3.5, alpha=0.7, label=method)
        axes.set(xscale="log", yscale="log", xlabel="ΔD, mean of 1 − cosine of a row", ylabel="ΔM over ‖W0‖")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")  # powers of ten would come as TeX
        axes.legend()

    text = str(drawn("decomposition", "Change of length against change of direction", draw))
    text = text.replace("currentColor", "#555555").replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return text.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="520" ', 1) + "\n"


if __name__ == "__main__":
    main()
