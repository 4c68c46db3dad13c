"""What ranks do in tests of sharded weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, attach, make_batch, make_model
from rank_works import adapted, make_trainer, said
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import TrainerCallback

from peft_bidora.adapter import regularizer
from peft_bidora.adapter.held import hold_in_bfloat16
from peft_bidora.adapter.layer import base_row_norm_squared, norm_in_graph
from peft_bidora.adapter.parameters import split_levels
from peft_bidora.adapter.shards import times_parts, whole_rows
from peft_bidora.bilevel.gradients import loss_and_gradient
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state
from peft_bidora.training import ranks
from peft_bidora.training.sharding import shard_base


class Holding(TrainerCallback):
    """Note what this rank holds of the frozen weights, which layers are whole while the second is run, and norms."""

    def __init__(self, model: Any) -> None:
        self.model, self.held, self.whole = model, list[dict[str, int]](), set[tuple[bool, bool]]()
        self.norms, self.norms_a_step = list[Tensor](), list[int]()
        first, second = (layer.attention.self.query for layer in model.get_base_model().bert.encoder.layer)

        def note(*_: Any) -> None:
            self.whole.add((_is_whole(first), _is_whole(second)))
            self.norms.append(base_row_norm_squared(second))

        second.register_forward_pre_hook(note)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.held.append(held_frozen(self.model))
        self.norms_a_step.append(len({id(each) for each in self.norms}))
        self.norms.clear()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.held.append(held_frozen(self.model))


def _is_whole(layer: Any) -> bool:
    return not isinstance(layer.base_layer.weight, DTensor)


def held_frozen(model: Any) -> dict[str, int]:
    """Return how many numbers of each frozen weight this process holds."""
    frozen = {name: each for name, each in model.named_parameters() if not each.requires_grad and "lora_" not in name}
    return {name: (each.to_local() if isinstance(each, DTensor) else each).numel() for name, each in frozen.items()}


def shard_all(output: Path) -> dict[str, Any]:
    """Return what this rank holds while it trains over shards, what is sharded together, and what is refused.

    Returns:
        `held`, of each frozen weight, after each step and each evaluation; `whole`, whether the two layers are while
        the second is run; `norms`, computed in each step; `numbers` of each weight; `groups`; `computed_in` under
        bfloat16; `refused`.
    """
    trainer = make_trainer(output, sharded=True, max_steps=2, retrain_max_steps=1, eval_steps=1)
    holding = Holding(trainer.model)
    trainer.add_callback(holding)
    trainer.train()
    holding.held.append(held_frozen(trainer.model))

    def differing() -> None:
        model = adapted()
        with torch.no_grad():
            model.get_base_model().bert.pooler.dense.bias[3] += ranks.rank()
        shard_base(model)

    def packed() -> None:
        model = adapted()
        layer = model.get_base_model().bert.pooler.dense
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)
        shard_base(model)

    half, computed_in = make_trainer(output / "half", dtype=torch.float32, sharded=True, bf16=True), set()
    layer = half.model.get_base_model().bert.encoder.layer[1].attention.self.query
    layer.register_forward_hook(lambda _module, _inputs, result: computed_in.add(result.dtype))
    half.evaluate()

    bart = adapted("tokens")
    bart.get_base_model().scale = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)
    shard_base(bart)
    refused = {
        "differing": differing,
        "packed": packed,
        "none frozen": lambda: shard_base(adapted().requires_grad_(True)),
        "exact": lambda: make_trainer(output / "exact", sharded=True, hypergradient="exact"),
    }
    return {
        "held": holding.held,
        "whole": holding.whole,
        "norms": holding.norms_a_step,
        "computed_in": computed_in,
        "numbers": held_frozen(adapted()),
        "groups": [name for name, module in bart.named_modules() if isinstance(module, FSDPModule)],
        "refused": {name: said(work) for name, work in refused.items()},
    }


def differentiate_all(_folder: Path) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Return of each family what a whole model computes and what a sharded one does, in two kinds of passes each."""
    found = {}
    for family in FAMILIES:
        whole, sharded = (_with_live_b(attach(make_model(family), "all-linear", dropout=0.1)) for _ in range(2))
        shard_base(sharded)
        found[family] = _differentiated(family, whole), _differentiated(family, sharded)
    return found


def differentiate_coarse(_folder: Path) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Return as `differentiate_all` does, over weights in bfloat16, beside others in float32, under autocast."""
    ranks.join()
    found = {}
    for family in ("bert", "gpt2", "llama", "t5"):
        results = []
        for sharded in (False, True):
            base = make_model(family)
            model = attach(base, "all-linear", dropout=0.1)
            hold_in_bfloat16(model)
            _draw_b(model)
            if sharded:
                shard_base(model)
            with torch.autocast("cpu", torch.bfloat16):
                results.append(_differentiated(family, model))
        found[family] = (results[0], results[1])
    return found


def _with_live_b(model: Any) -> Any:
    _draw_b(model)
    return model.double()


def _draw_b(model: Any) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def _differentiated(family: str, model: Any) -> list[Tensor]:
    """Return the loss of two micro-batches under dropout, its gradients and logits of an evaluation."""
    levels, batch = split_levels(model), {**make_batch(family), "labels": torch.tensor([0, 1, 2, 1])}
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    torch.manual_seed(2 + ranks.rank())
    model.train()
    loss = ReplayedLoss(lambda: model(**batch).loss, capture_random_state())
    magnitude = list(levels.magnitude.values())
    with norm_in_graph(model):
        value, gradient = loss_and_gradient([loss, loss], [*levels.direction.values(), *magnitude])
        of_magnitude = loss_and_gradient([loss], magnitude)[1]
    model.eval()
    with torch.no_grad():
        return [value, *gradient, *of_magnitude, model(**batch).logits]


def regularize_all(_folder: Path) -> dict[str, Any]:
    """Return the orthogonality of a whole model and of a sharded one, and its gradients, of all rows and of some drawn.

    Returns:
        of each family and most rows of a layer whose W0·W0ᵀ is kept, the two; `gathered`, the shapes of what was put
        together of parts in a step.
    """
    ranks.join()
    found: dict[str, Any] = {"gathered": {}}
    gather = DTensor.full_tensor
    with pytest.MonkeyPatch.context() as patch:
        for family, most in [(family, most) for family in ("bert", "gpt2", "llama", "t5") for most in (1024, 4)]:
            patch.setattr(regularizer, "MOST_ROWS", most)
            patch.setattr(regularizer, "DRAWN_ROWS", 7)
            results, shapes = [], set[tuple[int, ...]]()
            for sharded in (False, True):
                model = _with_live_b(attach(make_model(family), "all-linear"))
                if sharded:
                    shard_base(model)
                orthogonality = regularizer.OrthogonalityRegularizer(model)
                patch.setattr(
                    DTensor, "full_tensor", lambda each, seen=shapes: (seen.add(tuple(each.shape)), gather(each))[1]
                )
                value = orthogonality.add_gradient(1.0, 3)
                patch.setattr(DTensor, "full_tensor", gather)
                results.append([value, *(each.grad for each in model.parameters() if each.grad is not None)])
            found[f"{family}, {most}"] = results
            found["gathered"][f"{family}, {most}"] = shapes
    return found


def pick_rows(_folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Return some rows of a weight and of its unequal parts, and a product with either."""
    ranks.join()
    rows, weight, left = torch.tensor([0, 2, 3]), torch.randn(5, 3).double(), torch.randn(2, 5).double()
    parts = distribute_tensor(weight, init_device_mesh("cpu", (2,)), [Shard(0)])  # which sends what the first rank drew
    weight = parts.full_tensor()
    torch.distributed.broadcast(left, 0)
    return [(weight[rows], whole_rows(parts, rows)), (left @ weight, times_parts(left, parts))]


def generate_all(_folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what a whole model and a sharded one write, the second rank four times as much as the first."""
    ranks.join()
    found, ids = {}, torch.tensor([[3, 4, 5 + ranks.rank()]])
    for kind in ("tokens", "shifted tokens"):
        written = []
        for sharded in (False, True):
            model = adapted(kind).eval()
            if sharded:
                shard_base(model)
            with torch.no_grad():
                length = 2 + 6 * ranks.rank()
                written.append(
                    model.generate(input_ids=ids, min_new_tokens=length, max_new_tokens=length, pad_token_id=0)
                )
        found[kind] = (written[0], written[1])
    return found
