"""The orthogonality regulariser of the direction, with a gradient in closed form.

    R(V) = mean over layers of ‖D·Dᵀ − I‖_F,   D = V / n,   so that   ‖D·Dᵀ − I‖² = ‖D·Dᵀ‖² − out

    G = V·Vᵀ = W0·W0ᵀ + U·Bᵀ + B·Uᵀ,   U = s·W0·Aᵀ + ½s²·B·(A·Aᵀ),   w = 1 / n² = 1 / diag(G)
    ‖D·Dᵀ‖² = Σ w_i q_i,   q_i = Σ_j G_ij² w_j
    ∂½‖D·Dᵀ‖²/∂V = 2·H·V,   H·X = w ⊙ G·(w ⊙ X) − w² ⊙ q ⊙ X

Since U and V·Aᵀ lie in the span of B and W0·Aᵀ, one product of W0·W0ᵀ with 2r columns is all that costs out²·r, and
G itself is never built.
W0·W0ᵀ is kept for each adapted layer: out² numbers. Of a layer with many rows a few, drawn anew for each step, stand
for all, and nothing is kept: ‖D·Dᵀ − I‖² of k rows is, in expectation, k(k − 1) / (out(out − 1)) of the whole.
Layers of one shape are computed together, and so are the lanes of each.
Reference: Qin, Zhang, Xie, arXiv:2410.09758, the Gram regulariser.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from peft_bidora.adapter.freed import give_back_freed
from peft_bidora.adapter.layer import base_product, base_weight, dora_layers, factors_of
from peft_bidora.adapter.parameters import is_trained
from peft_bidora.adapter.shards import is_part, times_parts, whole_rows

# Numbers of W0·W0ᵀ that are squared at a time: what a CPU's cache holds, or what keeps another device busy.
SQUARED_ON_CPU, SQUARED = 2**18, 2**24
MOST_ROWS, DRAWN_ROWS = 1024, 512  # of a layer whose W0·W0ᵀ is kept; of a larger one in a step


class OrthogonalityRegularizer:
    """R(V) of a model's DoRA layers; holds W0·W0ᵀ of each that has at most 1,024 rows.

    Args:
        model: the PEFT model.
    """

    def __init__(self, model: nn.Module) -> None:
        alike: dict[Any, list[tuple[Any, str]]] = defaultdict(list)
        for _, module, adapter in dora_layers(model):
            if not is_trained(module, adapter):
                continue
            weight, factors = base_weight(module), factors_of(module, adapter)
            scaling = None if isinstance(factors.scaling, Tensor) else factors.scaling  # lanes have those of each layer
            key = weight.shape, weight.dtype, weight.device, factors.lora_a.shape, scaling
            alike[key].append((module, adapter))
        self._groups = [
            (layers, _gram(layers, slice(None)) if key[0][0] <= MOST_ROWS else None) for key, layers in alike.items()
        ]
        give_back_freed()

    @torch.no_grad()
    def add_gradient(self, weight: float | Tensor, step: int) -> Tensor:
        """Add weight · ∂R/∂A and weight · ∂R/∂B to the gradients of A and B; return R, a scalar or (lanes,).

        Args:
            weight: γ; (lanes,) where each lane has its own.
            step: of the search, which seeds the draw of rows.
        """
        count = sum(len(layers) for layers, _ in self._groups)
        values = []
        for layers, whole in self._groups:
            factors = [factors_of(module, adapter) for module, adapter in layers]
            out, device = factors[0].lora_b.shape[-2], factors[0].lora_b.device
            rows = slice(None) if whole is not None else drawn_rows(out, step).to(device)
            gram = _gram(layers, rows) if whole is None else whole
            a = torch.stack([each.lora_a for each in factors]).to(gram.dtype)
            b = torch.stack([each.lora_b[..., rows, :] for each in factors]).to(gram.dtype)
            # r rows are faster than r columns.
            product = torch.stack([_times_rows(part, layer, rows) for part, layer in zip(a, layers, strict=True)]).mT
            scaling = factors[0].scaling
            scaling = scaling[..., None] if isinstance(scaling, Tensor) else scaling
            value, pulled, gradient_b = orthogonality(product, gram, a, b, scaling)
            gradient_a = torch.stack(
                [_pulled_back(part, layer, rows) for part, layer in zip(pulled, layers, strict=True)]
            )
            gradient_a += scaling * ((pulled.mT @ b) @ a)
            share = share_of_rows(gram.shape[-1], out)
            values.append(value / share)
            factor = (weight[:, None, None] if isinstance(weight, Tensor) else weight) / (count * share)
            for each, for_a, for_b in zip(factors, gradient_a, gradient_b, strict=True):
                _add(each.lora_a, slice(None), for_a * factor)
                _add(each.lora_b, rows, for_b * factor)
        return torch.cat([value.to(values[0].device) for value in values]).mean(0)


def drawn_rows(out: int, step: int) -> Tensor:
    """Return the rows that stand for a layer in a step, (k,), in their order."""
    drawn = torch.randperm(out, generator=torch.Generator().manual_seed(step))[:DRAWN_ROWS]
    return drawn.sort().values


def share_of_rows(drawn: int, out: int) -> float:
    """Return what part of ‖D·Dᵀ − I‖ drawn rows hold: √(k(k − 1) / (out(out − 1)))."""
    return float((drawn * (drawn - 1) / (out * (out - 1))) ** 0.5) if drawn < out else 1.0


def orthogonality(
    product: Tensor, gram: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ‖D·Dᵀ − I‖_F of layers of one shape with what its gradients are made of.

    Args:
        product: (layers, [lanes,] out, r), W0·Aᵀ.
        gram: (layers, out, out), W0·W0ᵀ.
        lora_a: (layers, [lanes,] r, in), A.
        lora_b: (layers, [lanes,] out, r), B.
        scaling: s; (lanes, 1, 1) where each lane has its own.

    Returns:
        the values, (layers [, lanes]); P, (layers, [lanes,] out, r), with which the gradient for A is Pᵀ·V; the
        gradient for B, (layers, [lanes,] out, r).
    """
    rank = lora_a.shape[-2]
    # Layers whose W0·W0ᵀ goes with each lane.
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal = diagonal if lora_a.ndim == 3 else diagonal[:, None]
    inner = lora_a @ lora_a.mT
    low_rank = scaling * (lora_b @ inner)
    half = scaling * (product + 0.5 * low_rank)  # U
    moved = product + low_rank  # V·Aᵀ
    squared = diagonal + 2 * (half * lora_b).sum(dim=-1)
    # A row of zeros is orthogonal to all; w² must be finite for it to count as such.
    inverse = squared.clamp_min(torch.finfo(squared.dtype).tiny ** 0.5).reciprocal()[..., None]  # w
    of_both = _by_gram(gram, inverse * torch.cat([lora_b, product], dim=-1))
    of_b, of_product = of_both[..., :rank], of_both[..., rank:]
    low_rank_of_b = scaling * (of_b @ inner)
    of_half = scaling * (of_product + 0.5 * low_rank_of_b)
    left, right = torch.cat([half, lora_b], dim=-1), torch.cat([lora_b, half], dim=-1)  # G − W0·W0ᵀ = left·rightᵀ
    weighted_right = (inverse * right).mT
    row_sums = _squares_by(gram, inverse)
    row_sums += (left * (2 * torch.cat([of_b, of_half], dim=-1) + left @ (weighted_right @ right))).sum(-1, True)  # q
    total = (inverse * row_sums).sum(dim=(-2, -1)) - gram.shape[-1]
    # Of orthonormal rows, or of one, the sum is rounding; its root divides the gradient.
    value = total.clamp_min(gram.shape[-1] * torch.finfo(gram.dtype).eps).sqrt()

    def weighted(columns: Tensor, of_columns: Tensor) -> Tensor:
        """Return H·X of columns X, given W0·W0ᵀ·(w ⊙ X)."""
        full: Tensor = of_columns + left @ (weighted_right @ columns) - inverse * row_sums * columns
        return inverse * full

    factor = 2 * scaling / value[..., None, None]
    return value, factor * weighted(lora_b, of_b), factor * weighted(moved, of_product + low_rank_of_b)


def _by_gram(gram: Tensor, columns: Tensor) -> Tensor:
    """Return G·X, (layers, [lanes,] out, k), of X in that shape; the lanes of a layer are so many more columns."""
    if columns.ndim == 3:
        return (columns.mT @ gram).mT  # which is symmetric
    side_by_side = columns.mT.flatten(1, 2)  # (layers, lanes · k, out)
    return (side_by_side @ gram).view(columns.mT.shape).mT


def _squares_by(gram: Tensor, weights: Tensor) -> Tensor:
    """Return (G ⊙ G)·w, (layers, [lanes,] out, 1), without a second (layers, out, out)."""
    numbers = SQUARED_ON_CPU if gram.device.type == "cpu" else SQUARED
    rows = max(1, numbers // (len(gram) * gram.shape[-1]))
    squares = gram.new_empty(len(gram), min(rows, gram.shape[-1]), gram.shape[-1])
    parts = (torch.mul(part, part, out=squares[:, : part.shape[1]]) for part in torch.split(gram, rows, dim=1))
    if weights.ndim == 3:
        return torch.cat([part.mul_(weights.mT).sum(-1, keepdim=True) for part in parts], dim=1)
    # One pass over the squares for all lanes: (layers, rows, out) · (layers, out, lanes).
    return torch.cat([part @ weights[..., 0].mT for part in parts], dim=1).mT[..., None]


def _gram(layers: list[tuple[Any, str]], rows: Any) -> Tensor:
    """Return W0·W0ᵀ of some rows of each layer, (layers, k, k)."""
    weights = (_weight(layer, rows) for layer in layers)
    return torch.stack([weight @ weight.T for weight in weights])


def _times_rows(a: Tensor, layer: tuple[Any, str], rows: Any) -> Tensor:
    """Return A·W0ᵀ of some rows of W0, ([lanes,] r, k); a W0 in parts has no lanes."""
    if is_part(layer[0].get_base_layer().weight):
        return base_product(layer[0], a).mT[..., rows]
    return a @ _weight(layer, rows).T


def _pulled_back(pulled: Tensor, layer: tuple[Any, str], rows: Any) -> Tensor:
    """Return Pᵀ·W0 of some rows of both, ([lanes,] r, in); a W0 in parts has no lanes."""
    module = layer[0]
    weight = module.get_base_layer().weight
    if not is_part(weight):
        return pulled.mT @ _weight(layer, rows)
    spread = pulled.new_zeros(module.out_features, pulled.shape[-1])
    spread[rows] = pulled
    return times_parts(spread.mT, weight.T if module.fan_in_fan_out else weight)


def _weight(layer: tuple[Any, str], rows: Any) -> Tensor:
    """Return some rows of W0, at least float32; one layer's copy at a time."""
    module, stored = layer[0], layer[0].get_base_layer().weight
    by_rows = is_part(stored) and not module.fan_in_fan_out and isinstance(rows, Tensor)
    weight = whole_rows(stored, rows) if by_rows else base_weight(module)[rows]
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _add(parameter: Tensor, rows: Any, gradient: Tensor) -> None:
    """Add to some rows of a parameter's gradient, of each lane where there are any."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad[..., rows, :] += gradient.to(parameter.dtype)
