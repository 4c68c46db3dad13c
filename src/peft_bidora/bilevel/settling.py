"""Tell when the steps of a level no longer lead anywhere.

    straightness = ‖M_w − M_0‖ / Σ_t ‖M_t − M_{t−1}‖   over a window of w steps

It is 1 on a straight line and, in many dimensions, 1/√w for steps of one length in directions of their own: those of
Adam, once its gradient is noise. The length of a step does not tell: it is that of the learning rate.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peft_bidora.bilevel.tensors import add_scaled, norm


class Straightness:
    """The straightness of the way of some parameters, window by window.

    Args:
        parameters: M, before the first step.
        window: w, the steps after which it is told.
    """

    def __init__(self, parameters: Sequence[Tensor], window: int) -> None:
        self._parameters, self._window = parameters, window
        self._first: tuple[Tensor, ...]
        self._last: tuple[Tensor, ...]
        self._length: Tensor
        self._steps: int
        self._restart()

    def add_step(self) -> float | None:
        """Take notice of a step; return the straightness where a window ends, else None.

        It is 0 where the parameters did not move.
        """
        now = self._now()
        self._length = self._length + norm(add_scaled(now, self._last, -1.0))
        self._last, self._steps = now, self._steps + 1
        if self._steps < self._window:
            return None
        moved, length = torch.stack([norm(add_scaled(self._last, self._first, -1.0)), self._length]).tolist()
        self._restart()
        return moved / length if length > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain tensors and containers."""
        return {"first": list(self._first), "last": list(self._last), "length": self._length, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        device = self._parameters[0].device
        self._first, self._last = (tuple(each.to(device) for each in state[name]) for name in ("first", "last"))
        self._length, self._steps = state["length"].to(device), state["steps"]

    def _restart(self) -> None:
        self._first = self._last = self._now()
        self._length, self._steps = torch.zeros_like(norm(self._first)), 0

    def _now(self) -> tuple[Tensor, ...]:
        return tuple(parameter.detach().clone() for parameter in self._parameters)
