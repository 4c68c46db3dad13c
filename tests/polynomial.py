"""A bi-level problem whose hypergradient has a closed form."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from peft_bidora.bilevel.hypergradient import BilevelProblem
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state


def replayed(loss: Callable[[], Tensor]) -> ReplayedLoss:
    return ReplayedLoss(loss, capture_random_state())


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


class Polynomial:
    """L_train = ½ Σ cᵢ(Vᵢ − (P·M)ᵢ)² + ⅓ a Σ Vᵢ³(P·M)ᵢ,  L_val = ½‖V − t‖² + ½k‖M − u‖².

    ∂L_train/∂M = Pᵀ(c⊙(P·M − V) + ⅓a·V³), so that (∂²L_train/∂M∂V)·v = Pᵀ((aV² − c)⊙v) with v = V − t.
    V has the shapes (2, 3) and (2,), M has (2,) and (1,).
    """

    def __init__(self, cubic: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(3)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.p, self.c, self.t, self.u, self.k, self.a = draw(8, 3), draw(8).exp(), draw(8), draw(3), 0.3, cubic
        self.direction = [draw(2, 3).requires_grad_(), draw(2).requires_grad_()]
        self.magnitude = [draw(2).requires_grad_(), draw(1).requires_grad_()]

    def _flat(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.cat([part.flatten() for part in level]) for level in (self.direction, self.magnitude))

    def lower(self) -> Tensor:
        v, m = self._flat()
        return 0.5 * (self.c * (v - self.p @ m) ** 2).sum() + self.a / 3 * (v**3 * (self.p @ m)).sum()

    def upper(self) -> Tensor:
        v, m = self._flat()
        return 0.5 * ((v - self.t) ** 2).sum() + 0.5 * self.k * ((m - self.u) ** 2).sum()

    def vector(self) -> Tensor:
        return flat(self.direction) - self.t

    def direct(self) -> Tensor:
        return self.k * (flat(self.magnitude) - self.u)

    def implicit(self, xi: float) -> Tensor:
        v = flat(self.direction)
        return -xi * self.p.T @ ((self.a * v**2 - self.c) * self.vector())

    def problem(self, **changes: Any) -> BilevelProblem:
        # Two unequal micro-batches of each level add up to the whole.
        lower = [replayed(lambda share=share: share * self.lower()) for share in (0.25, 0.75)]
        upper = [lambda share=share: share * self.upper() for share in (0.4, 0.6)]
        return BilevelProblem(lower, upper, self.direction, self.magnitude, **changes)
