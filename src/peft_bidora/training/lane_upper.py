"""The upper step of lanes: one problem for all, an update of the magnitudes for each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_bidora.adapter.lanes import Lanes
from peft_bidora.adapter.parameters import require_gradient
from peft_bidora.bilevel.gradients import Loss
from peft_bidora.bilevel.hypergradient import BilevelProblem
from peft_bidora.bilevel.randomness import ReplayedLoss
from peft_bidora.bilevel.response import Response, adam_response
from peft_bidora.bilevel.step import descend
from peft_bidora.errors import NonFiniteError
from peft_bidora.training.arguments import XI_OF_ADAM
from peft_bidora.training.lane_phase import LanePhase
from peft_bidora.training.upper_level import bound_estimator, estimator_options


def descend_lanes(
    parts: Sequence[LanePhase],
    stacked: Lanes,
    lower_losses: Sequence[ReplayedLoss],
    upper_losses: Sequence[Loss],
    *,
    estimator: str,
    bfloat16: bool,
    step: int,
) -> None:
    """Move the magnitudes of each lane that is in the training; a lane whose gradient is not finite is stopped.

    Args:
        parts: the lanes, in the order of the lane axis; their gradients of the lower level are taken.
        stacked: their parameters. What the estimator adds to the lower gradient is added to it.
        lower_losses: of a batch of each lane.
        upper_losses: the same of the upper level.
        estimator: as `estimator_for` returns it.
        bfloat16: whether the passes round to it.
        step: of the search, from 1.
    """
    direction, magnitude = list(stacked.direction.values()), list(stacked.magnitude.values())
    taken = [torch.zeros_like(each) if each.grad is None else each.grad for each in magnitude]
    for parameter in magnitude:
        parameter.grad = None
    require_gradient(magnitude, True)
    problem = BilevelProblem(
        lower_losses=lower_losses,
        upper_losses=upper_losses,
        direction=direction,
        magnitude=magnitude,
        lower_magnitude_gradient=taken if estimator == "one-sided" else None,
        response=_response(parts, stacked) if parts[0].args.xi == XI_OF_ADAM else None,
        lanes=True,
    )
    told = [estimator_options(part.args, part.learning_rate(), bfloat16=bfloat16) for part in parts]
    options = {option: direction[0].new_tensor([each[option] for each in told]) for option in told[0]}
    gradient = bound_estimator(estimator, options)(problem)
    require_gradient(magnitude, False)
    for index, part in enumerate(parts):
        if part.upper is None or not part.is_moving:
            continue
        of_lane, most = gradient.of_lane(index), part.args.max_grad_norm
        try:
            descend(part.magnitude, of_lane, part.upper.optimizer, max_norm=most, step=step)
        except NonFiniteError as error:
            part.lane.stopped = str(error)
            continue
        part.upper.finish_step(of_lane)
    for parameter, added in zip(direction, gradient.lower or (), strict=gradient.lower is not None):
        parameter.grad = added if parameter.grad is None else parameter.grad.add_(added)


def _response(parts: Sequence[LanePhase], stacked: Lanes) -> Response:
    """Return the responses of the lanes' own optimisers, side by side."""
    responses = []
    for index, part in enumerate(parts):
        views, stack = [part.views[name] for name in stacked.direction], stacked.direction.values()
        gradients = [torch.zeros_like(p[index]) if p.grad is None else p.grad[index].clone() for p in stack]
        responses.append(adam_response(part.optimizer, views, gradients, max_norm=part.args.max_grad_norm))

    def response(vector: Sequence[Tensor]) -> tuple[Tensor, ...]:
        answers = [each([part[index] for part in vector]) for index, each in enumerate(responses)]
        return tuple(torch.stack(parts) for parts in zip(*answers, strict=True))

    return response
