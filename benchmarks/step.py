"""Time one training step of each method on the same encoder, interleaved: ratios to PEFT's LoRA.

    python benchmarks/step.py                                  # MiniLM's shape, random weights, batch 16 x 64
    python benchmarks/step.py --layers 12 --width 768 --device cuda --precision bfloat16
    python benchmarks/step.py --peak search-4-one-sided        # the peak of resident memory of one case, MiB

A step is forward, backward, clipping and AdamW; a search step is one step of the lower level and its share of an upper
step. `betty` drives the paper's algorithm (its layer builds W0 + s·B·A) through betty-ml, which is left out where it
is not installed: `pip install --no-deps betty-ml`. A prediction is compared with that of the bare model.

A round runs every case once in a new order; its ratios are of that round, the table has their median and quartiles.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter
from peft_bidora.adapter.layer import set_norm_in_graph
from peft_bidora.adapter.parameters import require_gradient, split_levels
from peft_bidora.adapter.regularizer import OrthogonalityRegularizer
from peft_bidora.bilevel import hypergradient
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state
from peft_bidora.bilevel.step import upper_step

try:
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem
except ImportError:
    ImplicitProblem = None

RANK, ALPHA = 8, 16
LINEAR, QUERY_VALUE = ["query", "key", "value", "dense"], ["query", "value"]
ESTIMATORS: dict[str, hypergradient.Estimator] = {
    "central": partial(hypergradient.central_difference_hypergradient, xi=1.0, radius=1e-2),
    "one-sided": partial(hypergradient.one_sided_difference_hypergradient, xi=1.0, radius=1e-2),
    "exact": partial(hypergradient.exact_hypergradient, xi=1.0),
    "first-order": hypergradient.direct_gradient,
}
# Lower steps that a timing of a search takes, so that every K fits into it.
CYCLE = 4


def main() -> None:
    """Time all cases, print a table and write the JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    if options.peak:
        print(peak_of(bench, options.peak))
        return
    timed = bench.cases()
    for case in timed.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(options.rounds):
        for name in random.sample(list(timed), len(timed)):
            seconds[name].append(clock(timed[name], options.device))
    rows = {name: row(name, seconds, bench.reference[name]) for name in timed}
    for name, found in rows.items():
        found["peak_mib"] = peak_in_a_process(name) if options.device == "cpu" and not options.no_peak else None
        print(f"{name:32} {found['milliseconds']:9.1f} ms {found['ratio']} to {found['to']}", found["peak_mib"] or "")
    shape = {name: value for name, value in vars(options).items() if name not in ("peak", "name", "no_peak")}
    result = {"settings": {**shape, "torch": torch.__version__, "device_name": device_name(options)}, "cases": rows}
    output = Path(__file__).parent / "results" / f"step-{options.name}.json"
    output.write_text(json.dumps(result, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Return the shape of the model and of a batch, and what is run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--only", nargs="+", help="words that the cases to run have in their names")
    parser.add_argument("--name", default="cpu")
    parser.add_argument("--peak", help="run this case alone and print its peak memory")
    parser.add_argument("--no-peak", action="store_true")
    return parser.parse_args()


class Bench:
    """The cases over one shape of model and batch.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.reference: dict[str, str] = {}
        generator = torch.Generator().manual_seed(0)
        shape = (options.batch, options.length)
        self.batches = [
            {
                "input_ids": torch.randint(5, 1000, shape, generator=generator).to(options.device),
                "labels": torch.randint(0, 2, (options.batch,), generator=generator).to(options.device),
            }
            for _ in range(2)  # one of each level
        ]

    def cases(self) -> dict[str, Callable[[], Any]]:
        """Return a function of each case, and note in `reference` what it is compared with."""
        makers: dict[str, tuple[str, Callable[[], Callable[[], Any]]]] = {
            "lora": ("lora", lambda: self.plain(self.peft(LINEAR, use_dora=False))),
            "dora-peft": ("lora", lambda: self.plain(self.peft(LINEAR, use_dora=True))),
            "dora-ours": ("lora", lambda: self.plain(self.ours(LINEAR))),
            "retrain-ours": ("lora", lambda: self.plain(self.ours(LINEAR), fixed=True)),
            "lora-query-value": ("lora-query-value", lambda: self.plain(self.peft(QUERY_VALUE, use_dora=False))),
            "predict-base": ("predict-base", lambda: self.prediction(self.base())),
            "predict-lora": ("predict-base", lambda: self.prediction(self.peft(LINEAR, use_dora=False))),
            "predict-dora-peft": ("predict-base", lambda: self.prediction(self.peft(LINEAR, use_dora=True))),
            "predict-ours": ("predict-base", lambda: self.prediction(self.ours(LINEAR))),
        }
        for k in (1, CYCLE):
            for name in ESTIMATORS:
                makers[f"search-{k}-{name}"] = ("lora", partial(self.search, LINEAR, k, name))
        for name in ("central", "one-sided"):
            makers[f"search-1-{name}-query-value"] = ("lora-query-value", partial(self.search, QUERY_VALUE, 1, name))
        if ImplicitProblem is not None:
            makers["betty-1-query-value"] = ("lora-query-value", self.betty)
        only = self.options.only
        wanted = [name for name in makers if only is None or any(word in name for word in only)]
        wanted = list(dict.fromkeys([*(makers[name][0] for name in wanted), *wanted]))
        self.reference = {name: makers[name][0] for name in wanted}
        return {name: makers[name][1]() for name in wanted}

    def base(self, attention: str = "sdpa") -> BertForSequenceClassification:
        """Return the encoder with random weights, the same at each call."""
        torch.manual_seed(0)
        width = self.options.width
        config = BertConfig(
            hidden_size=width,
            num_hidden_layers=self.options.layers,
            num_attention_heads=width // 32 if width < 768 else width // 64,
            intermediate_size=4 * width,
            attn_implementation=attention,
        )
        return BertForSequenceClassification(config).to(self.options.device)

    def peft(self, targets: list[str], use_dora: bool) -> nn.Module:
        """Return PEFT's own adapter."""
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=targets, exclude_modules=".*pooler.*", use_dora=use_dora,
            modules_to_save=["classifier"],
        )  # fmt: skip
        return get_peft_model(self.base(), config)

    def ours(self, targets: list[str], attention: str = "sdpa") -> nn.Module:
        """Return the adapter of this package."""
        shape = AdapterOptions(RANK, ALPHA, 0.0, targets)
        model = attach_adapter(self.base(attention), shape, use_dora=True, task_type="SEQ_CLS", head=["classifier"])
        return model.to(self.options.device)

    def loss(self, model: nn.Module, level: int = 0) -> Tensor:
        """Return the loss of a level's batch."""
        with self.precision():
            loss: Tensor = model(**self.batches[level]).loss
        return loss

    def precision(self) -> Any:
        """Return autocast where it is asked for."""
        if self.options.precision == "float32":
            return nullcontext()
        return torch.autocast(self.options.device, torch.bfloat16)

    def plain(self, model: nn.Module, fixed: bool = False) -> Callable[[], None]:
        """Return steps of one level; fixed leaves the magnitudes out of it."""
        if fixed:
            require_gradient(list(split_levels(model).magnitude.values()), False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        model.train()

        def step() -> None:
            for _ in range(CYCLE):
                self.loss(model).backward()
                descend(trained, optimizer)

        return step

    def search(self, targets: list[str], k: int, estimator: str) -> Callable[[], None]:
        """Return steps of the search phase, put together as BilevelMixin does."""
        model = self.ours(targets, "eager" if estimator == "exact" else "sdpa").train()
        set_norm_in_graph(model, True)
        levels = split_levels(model)
        direction, magnitude = list(levels.direction.values()), list(levels.magnitude.values())
        lower = torch.optim.AdamW(direction, lr=1e-4, fused=True)
        upper = torch.optim.AdamW(magnitude, lr=1e-3, fused=True)
        regularizer = OrthogonalityRegularizer(model)

        def step() -> None:
            for number in range(1, CYCLE + 1):
                due = number % k == 0
                require_gradient(magnitude, due and estimator == "one-sided")
                replayed = ReplayedLoss(lambda: self.loss(model), capture_random_state())
                self.loss(model).backward()
                if due:
                    taken = [parameter.grad for parameter in magnitude]
                    require_gradient(magnitude, True)
                    problem = hypergradient.BilevelProblem(
                        [replayed], [lambda: self.loss(model, 1)], direction, magnitude,
                        taken if estimator == "one-sided" else None,
                    )  # fmt: skip
                    upper_step(ESTIMATORS[estimator], problem, upper, max_norm=1.0, step=number)
                regularizer.add_gradient(1e-5)
                descend(direction, lower)

        return step

    def betty(self) -> Callable[[], None]:
        """Return the paper's search, K = 1, by Betty's engine."""
        model = self.base().requires_grad_(False).train()
        for layer in model.bert.encoder.layer:
            for name in QUERY_VALUE:
                setattr(layer.attention.self, name, BuiltDora(getattr(layer.attention.self, name)))
        model.classifier.requires_grad_(True)
        magnitude = [module.magnitude for module in model.modules() if isinstance(module, BuiltDora)]
        upper_ids = {id(parameter) for parameter in magnitude}
        direction = [each for each in model.parameters() if each.requires_grad and id(each) not in upper_ids]
        parts = {}
        for level, (name, parameters) in enumerate((("lower", direction), ("upper", magnitude))):
            parts[name] = problem(self, model, level, parameters, name)
        dependencies = {"u2l": {parts["upper"]: [parts["lower"]]}, "l2u": {parts["lower"]: [parts["upper"]]}}
        engine = Engine([parts["upper"], parts["lower"]], EngineConfig(train_iters=CYCLE), dependencies)
        return lambda: engine.run()

    def prediction(self, model: nn.Module) -> Callable[[], None]:
        """Return passes without gradients."""
        model.eval()

        @torch.no_grad()
        def step() -> None:
            with self.precision():
                for _ in range(CYCLE):
                    model(input_ids=self.batches[0]["input_ids"])

        return step


class BuiltDora(nn.Module):
    """DoRA as the paper's code computes it: the adapted weight is built in every pass."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.randn(RANK, base.in_features, device=base.weight.device) * 0.02)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, RANK, device=base.weight.device))
        self.magnitude = nn.Parameter(base.weight.detach().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return W'·x + bias."""
        direction = self.base.weight + ALPHA / RANK * self.lora_b @ self.lora_a
        weight = (self.magnitude / direction.norm(dim=1))[:, None] * direction
        return nn.functional.linear(x, weight, self.base.bias)


def problem(bench: Bench, model: nn.Module, level: int, parameters: list[nn.Parameter], name: str) -> Any:
    """Return a level as Betty has it."""

    class Level(ImplicitProblem):  # type: ignore[misc,valid-type]
        def training_step(self, batch: Any) -> Tensor:
            return bench.loss(model, level)

        def trainable_parameters(self) -> list[nn.Parameter]:
            return parameters

        def parameters(self) -> list[nn.Parameter]:
            return parameters

    return Level(
        name=name,
        config=Config(type="darts", unroll_steps=1, gradient_clipping=1.0, retain_graph=name == "upper"),
        module=model,
        optimizer=torch.optim.AdamW(parameters, lr=1e-4, fused=True),
        train_data_loader=[bench.batches[level]],
        device=bench.options.device,
    )


def descend(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Clip and step, as Trainer does."""
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def clock(function: Callable[[], Any], device: str) -> float:
    """Return the seconds that a call takes."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = perf_counter()
    function()
    synchronize()
    return perf_counter() - start


def row(name: str, seconds: dict[str, list[float]], reference: str) -> dict[str, Any]:
    """Return the median milliseconds a step, and the quartiles of the ratios of each round."""
    ratios = [own / other for own, other in zip(seconds[name], seconds[reference], strict=True)]
    lower, middle, upper = (round(value, 3) for value in quantiles(ratios, n=4))
    milliseconds = 1e3 * quantiles(seconds[name], n=4)[1] / CYCLE
    return {"milliseconds": round(milliseconds, 1), "ratio": middle, "quartiles": [lower, upper], "to": reference}


def peak_of(bench: Bench, name: str) -> float:
    """Run one case and return the peak of the process's resident memory in MiB."""
    bench.options.only = [name]
    function = bench.cases()[name]
    for _ in range(3):
        function()
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)  # Linux counts KiB


def peak_in_a_process(name: str) -> float:
    """Return `peak_of` of a process of its own, with the options of this one."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def device_name(options: argparse.Namespace) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU threads"


if __name__ == "__main__":
    main()
