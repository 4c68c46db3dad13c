"""Base weights that bitsandbytes packed into 8 or 4 bits."""

from typing import Any

import torch
from torch import Tensor, nn

from peft_bidora.errors import AdapterError

COARSE = (torch.bfloat16, torch.float16)


def is_int8(weight: Tensor) -> bool:
    """Return whether a weight is packed into 8 bits."""
    return type(weight).__name__ == "Int8Params"


def is_packed(weight: Tensor) -> bool:
    """Return whether a weight is packed into 8 or 4 bits."""
    return is_int8(weight) or not weight.is_floating_point()


def int8_parts(base_layer: Any) -> tuple[Tensor, Tensor]:
    """Return the numbers of a layer of 8 bits, (out, in), and the scales of its rows, (out,)."""
    scales = base_layer.weight.SCB if base_layer.state.SCB is None else base_layer.state.SCB
    return base_layer.weight.data, scales


def unpack_int8(numbers: Tensor, scales: Tensor) -> Tensor:
    """Return W0, (out, in), of what `int8_parts` returns.

    PEFT's function for it puts another parameter into the layer, which then loses its scales.
    """
    from bitsandbytes.functional import int8_vectorwise_dequant

    weight: Tensor = int8_vectorwise_dequant(numbers, scales)
    return weight


def hold_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from laying 4-bit weights out anew for predictions on a CPU.

    It would do so at the first pass in evaluation: no gradient passes such a weight, without a word, and what unpacks
    it reads other numbers.

    Raises:
        AdapterError: that was done before; it cannot be undone exactly.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise AdapterError(
                "the model predicted on the CPU before it was adapted, for which bitsandbytes laid its 4-bit weights"
                " out anew: no gradient passes them. Load it again, and adapt it first."
            )
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def rounds_coarsely(model: nn.Module) -> bool:
    """Return whether passes round to 16 bits or fewer, by the weights of a model or by what its layers compute in."""
    return any(weight.dtype in COARSE or is_int8(weight) for weight in model.parameters()) or any(
        getattr(module, "compute_dtype", None) in COARSE for module in model.modules()
    )
