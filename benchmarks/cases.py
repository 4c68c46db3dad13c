"""The training steps that the benchmarks compare, over one encoder with random weights.

A step is forward, backward, clipping and AdamW; a search step is one step of the lower level and its share of an upper
step. `betty` drives the paper's algorithm (its layer builds W0 + s·B·A) through betty-ml, which is left out where it
is not installed: `pip install --no-deps betty-ml`.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter, process_time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter
from peft_bidora.adapter.layer import set_norm_in_graph
from peft_bidora.adapter.outputs import keep_outputs
from peft_bidora.adapter.parameters import require_gradient, split_levels
from peft_bidora.adapter.regularizer import OrthogonalityRegularizer
from peft_bidora.bilevel import hypergradient
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state
from peft_bidora.bilevel.response import adam_response
from peft_bidora.bilevel.settling import Straightness
from peft_bidora.bilevel.step import upper_step

try:
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem
except ImportError:
    ImplicitProblem = None

LINEAR, QUERY_VALUE = ["query", "key", "value", "dense"], ["query", "value"]
ESTIMATORS: dict[str, hypergradient.Estimator] = {
    "central": partial(hypergradient.central_difference_hypergradient, xi=1.0, radius=1e-2),
    "one-sided": partial(hypergradient.one_sided_difference_hypergradient, xi=1.0, radius=1e-2),
    "exact": partial(hypergradient.exact_hypergradient, xi=1.0),
    "sama": partial(hypergradient.one_sided_difference_hypergradient, xi=1.0, radius=1e-2),
    "first-order": hypergradient.direct_gradient,
    "pbgd-free": partial(hypergradient.value_function_free_gradient, penalty=10.0),
}
REUSING = ("one-sided", "sama")  # the gradient of the magnitudes that the lower pass gives
# Lower steps that a call of a case takes, so that every K fits into it.
CYCLE = 4


@dataclass(frozen=True)
class Shape:
    """Of the encoder and of a batch; the feed-forward is four times as wide.

    Args:
        layers: of the encoder.
        width: hidden size.
        batch: rows.
        length: tokens of each row.
        rank: r; alpha is 2r.
        device: as torch names it.
        precision: float32, or bfloat16 for autocast.
    """

    layers: int = 6
    width: int = 384
    batch: int = 16
    length: int = 64
    rank: int = 8
    device: str = "cpu"
    precision: str = "float32"


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """Let a shape and the threads be set on the command line."""
    for name, default in asdict(Shape()).items():
        choices = ["float32", "bfloat16"] if name == "precision" else None
        parser.add_argument(f"--{name}", type=type(default), default=default, choices=choices)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def shape_of(options: argparse.Namespace) -> Shape:
    """Return the shape that was asked for, and set the threads."""
    torch.set_num_threads(options.threads)
    return Shape(**{name: getattr(options, name) for name in asdict(Shape())})


def clock(function: Callable[[], Any], device: str) -> float:
    """Return the seconds that a call takes; on one thread those of the CPU, which other work on it changes little."""
    if device == "cpu":
        timer = process_time if torch.get_num_threads() == 1 else perf_counter
        start = timer()
        function()
        return timer() - start
    torch.cuda.synchronize()
    start = perf_counter()
    function()
    torch.cuda.synchronize()
    return perf_counter() - start


def device_name(options: argparse.Namespace) -> str:
    """Return the name of the device."""
    if options.device == "cuda":
        return torch.cuda.get_device_name()
    return "1 CPU thread" if options.threads == 1 else f"{options.threads} CPU threads"


class Bench:
    """The cases over one shape of model and batch.

    Args:
        shape: of both.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.compile = False  # whether the passes go through torch.compile
        self._compiled: dict[int, Any] = {}
        self.reference: dict[str, str] = {}
        generator = torch.Generator().manual_seed(0)
        size = (shape.batch, shape.length)
        self.batches = [
            {
                "input_ids": torch.randint(5, 1000, size, generator=generator).to(shape.device),
                "labels": torch.randint(0, 2, (shape.batch,), generator=generator).to(shape.device),
            }
            for _ in range(2)  # one of each level
        ]

    def cases(self, only: list[str] | None = None) -> dict[str, Callable[[], Any]]:
        """Return a function of each case, and note in `reference` what it is compared with.

        Args:
            only: words that the cases to make have in their names; their references are made too.
        """
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
        wanted = [name for name in makers if only is None or any(word in name for word in only)]
        wanted = list(dict.fromkeys([*(makers[name][0] for name in wanted), *wanted]))
        self.reference = {name: makers[name][0] for name in wanted}
        return {name: makers[name][1]() for name in wanted}

    def base(self, attention: str = "sdpa") -> BertForSequenceClassification:
        """Return the encoder with random weights, the same at each call."""
        torch.manual_seed(0)
        width = self.shape.width
        config = BertConfig(
            hidden_size=width,
            num_hidden_layers=self.shape.layers,
            num_attention_heads=width // 32 if width < 768 else width // 64,
            intermediate_size=4 * width,
            attn_implementation=attention,
        )
        return BertForSequenceClassification(config).to(self.shape.device)

    def peft(self, targets: list[str], use_dora: bool) -> nn.Module:
        """Return PEFT's own adapter."""
        config = LoraConfig(
            r=self.shape.rank,
            lora_alpha=2 * self.shape.rank,
            target_modules=targets,
            exclude_modules=".*pooler.*",
            use_dora=use_dora,
            modules_to_save=["classifier"],
        )
        return get_peft_model(self.base(), config)

    def ours(self, targets: list[str], attention: str = "sdpa") -> nn.Module:
        """Return the adapter of this package."""
        shape = AdapterOptions(self.shape.rank, 2 * self.shape.rank, 0.0, targets)
        model = attach_adapter(self.base(attention), shape, use_dora=True, task_type="SEQ_CLS", head=["classifier"])
        return model.to(self.shape.device)

    def loss(self, model: nn.Module, level: int = 0) -> Tensor:
        """Return the loss of a level's batch."""
        with self.precision():
            loss: Tensor = self.passed(model)(**self.batches[level]).loss
        return loss

    def passed(self, model: nn.Module) -> Any:
        """Return what computes a pass: the model, or the same compiled."""
        if not self.compile:
            return model
        if id(model) not in self._compiled:
            self._compiled[id(model)] = torch.compile(model)
        return self._compiled[id(model)]

    def precision(self) -> Any:
        """Return autocast where it is asked for."""
        if self.shape.precision == "float32":
            return nullcontext()
        return torch.autocast(self.shape.device, torch.bfloat16)

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
        keep_outputs(model)
        levels = split_levels(model)
        direction, magnitude = list(levels.direction.values()), list(levels.magnitude.values())
        lower = torch.optim.AdamW(direction, lr=1e-4, fused=True)
        upper = torch.optim.AdamW(magnitude, lr=1e-3, fused=True)
        regularizer, straightness = OrthogonalityRegularizer(model), Straightness(magnitude, 10)
        reuses, sums = estimator in REUSING, [torch.zeros((), device=self.shape.device)] * 2

        def step() -> None:
            for number in range(1, CYCLE + 1):
                due = number % k == 0
                require_gradient(magnitude, due and reuses)
                replayed = ReplayedLoss(lambda: self.loss(model), capture_random_state())
                self.loss(model).backward()
                regularizer.add_gradient(1e-5, number)
                if due:
                    taken = [parameter.grad for parameter in magnitude]
                    require_gradient(magnitude, True)
                    gradients = [parameter.grad.clone() for parameter in direction] if estimator == "sama" else []
                    problem = hypergradient.BilevelProblem(
                        [replayed], [lambda: self.loss(model, 1)], direction, magnitude, taken if reuses else None,
                        adam_response(lower, direction, gradients, max_norm=1.0) if gradients else None,
                    )  # fmt: skip
                    gradient = upper_step(ESTIMATORS[estimator], problem, upper, max_norm=1.0, step=number)
                    for parameter, added in zip(direction, gradient.lower or (), strict=bool(gradient.lower)):
                        parameter.grad.add_(added)
                    told = gradient.norm(), gradient.direct_implicit_cosine()
                    sums[:] = [a + b for a, b in zip(sums, told, strict=True)]
                    straightness.add_step()
                    keep_outputs(model)
                descend(direction, lower)

        return step

    def betty(self) -> Callable[[], None]:
        """Return the paper's search, K = 1, by Betty's engine."""
        model = self.base().requires_grad_(False).train()
        for layer in model.bert.encoder.layer:
            for name in QUERY_VALUE:
                setattr(layer.attention.self, name, BuiltDora(getattr(layer.attention.self, name), self.shape.rank))
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
                    self.passed(model)(input_ids=self.batches[0]["input_ids"])

        return step


class BuiltDora(nn.Module):
    """DoRA as the paper's code computes it: the adapted weight is built in every pass."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features, device=base.weight.device) * 0.02)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))
        self.magnitude = nn.Parameter(base.weight.detach().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return W'·x + bias."""
        direction = self.base.weight + 2 * self.lora_b @ self.lora_a
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
        device=bench.shape.device,
    )


def descend(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Clip and step, as Trainer does."""
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
