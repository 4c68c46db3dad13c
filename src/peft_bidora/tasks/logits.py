"""From a model's outputs to arrays."""

from typing import Any

from peft_bidora.tasks.task import Array


def first_output(outputs: Any, _labels: Any = None) -> Any:
    """Return the logits: some models add hidden states or caches behind them."""
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


def at_least_float32(logits: Any) -> Any:
    """Return logits of half precision as float32, and others as they are."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def forward(model: Any, inputs: Any) -> Array:
    """Return the logits of a batch in float32, on the CPU, without a graph."""
    import torch

    with torch.no_grad():
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
    logits: Array = outputs["logits"].float().cpu().numpy()
    return logits
