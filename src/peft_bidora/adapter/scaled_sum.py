"""The adapted layer's sum with its own backward pass: nothing of the output's size but what a gradient needs.

    y = c ⊙ (b0 − bias + s·B·A·x) + bias,    b0 = W0·x + bias (the base layer's output),   c = m / n

With the scale and s folded into B, forward is one pass over the output and one product that adds to it. Backward needs
b0 only where c has a gradient; as ∂y/∂c = (y − bias) / c, it can read y instead, which what follows a layer often keeps
anyway: attention its query, key and value, an activation its input. Products with r columns are written as products
with r rows, several times as fast on a CPU.

Lanes, adapters side by side over one base layer, have a lane axis in front of A, B and c; the rows of x are then those
of the first lane, of the second, and so on, as many of each.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def scaled_sum(
    base: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    scaling: float | Tensor,
    *,
    keep_output: bool = False,
) -> Tensor:
    """Return c ⊙ (b0 − bias + s·B·A·x) + bias in the precision of `base`; twice differentiable.

    Args:
        base: (..., out), b0.
        x: (..., in), the layer's input.
        lora_a: ([lanes,] r, in), A.
        lora_b: ([lanes,] out, r), B.
        scale: ([lanes,] out), c.
        bias: (out,), or None where the layer has none.
        scaling: s; (lanes, 1) where each lane has its own.
        keep_output: keep y for the gradient of c, not b0; for a c that is nowhere near zero.
    """
    dtype = base.dtype
    base = base.contiguous()  # here, since a second derivative goes through inputs of the function alone
    a, b = lora_a.to(dtype), lora_b.to(dtype)
    with outside_autocast(base):  # all is in the precision of `base`, which a packed layer does not take from autocast
        output: Tensor = _ScaledSum.apply(base, x.to(dtype), a, b, scale, bias, scaling, keep_output)  # type: ignore[no-untyped-call]
    return output


def outside_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which operations on the device of a tensor compute in the precision of their operands."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def shift_of(scale: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return (1 − c) ⊙ bias, ([lanes,] out): what c ⊙ b0 lacks of c ⊙ (b0 − bias) + bias."""
    return None if bias is None else bias * (1 - scale)


def folded(lora_b: Tensor, scale: Tensor, scaling: float | Tensor) -> Tensor:
    """Return s·c ⊙ B, ([lanes,] out, r)."""
    return lora_b * (scaling * scale)[..., None].to(lora_b.dtype)  # scalings of lanes are float32


def projected(x: Tensor, lora_a: Tensor) -> Tensor:
    """Return A·x of each row, ([lanes,] rows, r); x is (..., in)."""
    return (lora_a @ _rows(x, lora_a.shape[:-2]).mT).mT


def add_low_rank(scaled: Tensor, inner: Tensor, folded_b: Tensor) -> Tensor:
    """Add (s·c ⊙ B)·A·x to c ⊙ b0 + shift, in place.

    Args:
        scaled: (..., out), contiguous.
        inner: ([lanes,] rows, r), A·x.
        folded_b: ([lanes,] out, r).
    """
    rows = _rows(scaled, folded_b.shape[:-2])  # a view: it is contiguous
    (rows.addmm_ if rows.ndim == 2 else rows.baddbmm_)(inner, folded_b.mT)
    return scaled


def _rows(x: Tensor, lanes: Sequence[int]) -> Tensor:
    """Return x, (..., width), as ([lanes,] rows, width)."""
    return x.reshape(*lanes, -1, x.shape[-1])


def _scaled_rows(base: Tensor, factor: Tensor, shift: Tensor | None) -> Tensor:
    """Return c ⊙ b0 + shift in the shape of b0: no view, so that what follows the layer may write into it."""
    scaled = torch.empty_like(base)
    rows, written = _rows(base, factor.shape[:-1]), _rows(scaled, factor.shape[:-1])
    if shift is None:
        torch.mul(rows, factor[..., None, :], out=written)
    else:
        torch.addcmul(shift[..., None, :], rows, factor[..., None, :], out=written)
    return scaled


class _ScaledSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        x: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        scaling: float | Tensor,
        keep_output: bool,
    ) -> Tensor:
        factor = scale.to(base.dtype)
        shift = shift_of(factor, None if bias is None else bias.to(base.dtype))
        inner = projected(x, lora_a)
        scaled = _scaled_rows(base, factor, shift)
        add_low_rank(scaled, inner, folded(lora_b, factor, scaling))
        ctx.scaling, ctx.keep_output = scaling, keep_output
        read = (scaled if keep_output else base) if ctx.needs_input_grad[4] else None
        ctx.save_for_backward(x, lora_a, lora_b, scale, inner, read, bias)
        return scaled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, lora_a, lora_b, scale, inner, read, bias = ctx.saved_tensors
        of_base, of_x, of_a, of_b, of_scale, of_bias, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a second derivative goes through A·x, not through its kept value
            inner = projected(x, lora_a)
        lanes, factor = scale.shape[:-1], scale.to(gradient.dtype)
        rows = _rows(gradient, lanes)
        base_gradient = (rows * factor[..., None, :]).reshape(gradient.shape) if of_base else None
        x_gradient = a_gradient = b_gradient = scale_gradient = bias_gradient = None
        if of_x or of_a:
            inner_gradient = (folded(lora_b, factor, ctx.scaling).mT @ rows.mT).mT  # (rows, r)
            x_gradient = (inner_gradient @ lora_a).reshape(x.shape) if of_x else None
            a_gradient = inner_gradient.mT @ _rows(x, lanes) if of_a else None
        if of_b or (of_scale and not ctx.keep_output):
            product = (inner.mT @ rows).mT  # (out, r)
            b_gradient = folded(product, factor, ctx.scaling) if of_b else None
        if of_scale:
            scale_gradient = (rows * _rows(read, lanes)).sum(-2, dtype=scale.dtype)
        if bias is not None and (of_scale or of_bias):
            total = rows.sum(-2, dtype=scale.dtype)
            scale_gradient = scale_gradient - bias * total if of_scale else None
            bias_gradient = ((1 - scale) * total).sum_to_size(bias.shape) if of_bias else None
        if of_scale and ctx.keep_output:
            scale_gradient = scale_gradient / scale
        elif of_scale:
            scale_gradient = scale_gradient + ctx.scaling * (product * lora_b).sum(-1, dtype=scale.dtype)
        return base_gradient, x_gradient, a_gradient, b_gradient, scale_gradient, bias_gradient, None, None
