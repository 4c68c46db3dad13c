"""Frozen weights that are divided over the ranks (FSDP2), and what a Trainer does differently then.

Each rank holds its part of every frozen weight; the weights of a block are gathered for each pass through it and let go
after it. What is trained is small and stays whole on every rank, so that its gradient can be asked for, and is reduced
by the ranks as without shards.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch import distributed as dist

from peft_bidora.adapter.freed import give_back_freed
from peft_bidora.adapter.packed import is_packed
from peft_bidora.adapter.shards import is_sharded
from peft_bidora.bilevel.gradients import mean_over_ranks
from peft_bidora.errors import ModelError, RecipeError
from peft_bidora.training import ranks

LEAST_TORCH = "2.7"  # whose fully_shard can leave parameters whole
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


def shard_base(model: PeftModel) -> None:
    """Divide the frozen weights of an adapted model over the ranks; on one process there is nothing to do.

    Every rank has to load the same weights and to call this before it makes its Trainer.

    Args:
        model: with its adapter; it is changed in place.

    Raises:
        ModelError: no weight is frozen, the weights are packed, or the ranks hold different ones.
        RecipeError: torch is too old.
    """
    ranks.join()
    if ranks.count() == 1:
        return
    require_torch()
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    named = dict(model.named_parameters())
    # A single number has no rows to divide.
    kept = {each for name, each in named.items() if each.requires_grad or "lora_" in name or each.ndim == 0}
    _require_shardable(named, kept)
    device = PartialState().device
    mesh = init_device_mesh(device.type, (ranks.count(),))
    for parameter in kept:
        parameter.data = parameter.data.to(device)  # fully_shard moves what it divides alone
    for part in (*dict.fromkeys(_blocks(model)), model):
        if not kept.issuperset(part.parameters()):
            fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    if hasattr(model, "generate"):  # which goes round the forward pass of a PEFT model
        register_fsdp_forward_method(model, "generate")
    del named
    give_back_freed()  # of the whole weights


def require_torch() -> None:
    """Raise RecipeError if torch is too old to divide some of the parameters."""
    if torch.__version__ < LEAST_TORCH:
        raise RecipeError(
            f"FSDP: expected torch {LEAST_TORCH} or later, got {torch.__version__}. Install a later one, or do not"
            " shard the model."
        )


def refuse_fsdp(wanted: bool) -> None:
    """Raise RecipeError if accelerate or transformers are to divide the weights."""
    if wanted:
        raise RecipeError(
            "ACCELERATE_USE_FSDP, or fsdp among the arguments, shards what is trained too; expected neither. Start it"
            " with torchrun and call peft_bidora.shard_base(model)."
        )


def settle(trainer: Any) -> None:
    """Prepare a sharded model as accelerate would, but for DistributedDataParallel, which refuses one.

    Raises:
        RecipeError: accelerate is to divide the weights.
    """
    refuse_fsdp(trainer.is_fsdp_enabled)
    if is_sharded(trainer.model):
        trainer.accelerator.prepare_model(trainer.model, device_placement=False, evaluation_mode=True)
        trainer.model._is_accelerate_prepared = True


def reduce_gradients(optimizer: Any) -> None:
    """Give each parameter of an optimiser the mean of its gradients over the ranks, the same to the bit on all."""
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # One that a rank's rows do not reach may be reached by another's.
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    for parameter, gradient in zip(parameters, mean_over_ranks(gradients), strict=True):
        parameter.grad = gradient


def _require_shardable(named: dict[str, nn.Parameter], kept: set[nn.Parameter]) -> None:
    frozen = {name: parameter for name, parameter in named.items() if parameter not in kept}
    if not frozen:
        raise ModelError("no weight is frozen, so that there is nothing to shard. Shard a model with an adapter.")
    if any(is_packed(parameter) for parameter in frozen.values()):
        raise ModelError("weights that bitsandbytes packed cannot be sharded. Load them in float32 or bfloat16.")
    sums: list[Any] = [None] * ranks.count()
    dist.all_gather_object(sums, {name: _bits(parameter) for name, parameter in named.items()})
    for name, found in sums[0].items():
        if any(each.get(name) != found for each in sums):
            raise ModelError(
                f"{name} differs between the processes, which would train a model that nobody has. Set the same seed"
                " on all before the model is made."
            )


@torch.no_grad()
def _bits(parameter: Tensor) -> int:
    """Return the sum of the bits of a tensor, read as whole numbers: exact, whatever the order."""
    return int(parameter.detach().flatten().view(_INTEGERS[parameter.element_size()]).sum(dtype=torch.int64))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what is run one after another: the members of the outermost lists of modules."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from _blocks(child)
