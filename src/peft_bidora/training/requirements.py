"""What the bi-level search asks of a model and of rows."""

from typing import Any

from torch import nn

from peft_bidora.adapter.shards import is_sharded
from peft_bidora.errors import ModelError


def sized(name: str, rows: Any) -> Any:
    """Return rows that have a length; raise TypeError for others."""
    if not hasattr(rows, "__len__"):
        raise TypeError(
            f"{name}: expected rows that have a length and can be read by index, got {type(rows).__name__}. Read a"
            " stream into a list or a datasets.Dataset first."
        )
    return rows


def require_second_derivatives(model: nn.Module) -> None:
    """Raise ModelError for a model that cannot be differentiated twice, by its attention or since it is sharded."""
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", "eager")
    if implementation != "eager":
        raise ModelError(
            f"hypergradient=exact differentiates twice, which the attention {implementation!r} does not support."
            ' Load the model with attn_implementation="eager", or use finite-difference.'
        )
    if is_sharded(model):
        raise ModelError(
            "hypergradient=exact differentiates twice, and a sharded model lets its weights go after the first time."
            " Use finite-difference, or do not shard it."
        )


def refuse_reentrant_checkpoints(model: nn.Module) -> None:
    """Raise ModelError for checkpoints whose insides `torch.autograd.grad` does not reach: its result would be zero."""
    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        reentrant = getattr(function, "keywords", {}).get("use_reentrant", True)
        if function is not None and getattr(module, "gradient_checkpointing", False) and reentrant is not False:
            raise ModelError(
                "activation checkpointing with use_reentrant=True hides the magnitudes from the upper level. Set"
                ' activation_checkpointing_kwargs={"use_reentrant": False}.'
            )
