"""What the options make of the estimator."""

import pytest
import torch

from peft_bidora.bilevel.hypergradient import BilevelProblem
from peft_bidora.bilevel.randomness import ReplayedLoss, capture_random_state
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.upper_level import estimator_of


@pytest.mark.parametrize(("xi", "factor"), [(1.0, 1.0), (3.0, 3.0), ("lower-learning-rate", 0.25), (0.0, 0.0)])
@pytest.mark.parametrize("hypergradient", ["finite-difference", "one-sided", "exact"])
def test_xi_scales_the_implicit_term(xi, factor, hypergradient, tmp_path):
    direction = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    magnitude = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    lower = ReplayedLoss(lambda: (direction * direction * magnitude).sum(), capture_random_state())
    problem = BilevelProblem([lower], [lambda: (5 * direction).sum()], [direction], [magnitude])
    args = BiDoRAArguments(str(tmp_path), hypergradient=hypergradient, xi=xi, report_to=[], use_cpu=True)
    implicit = estimator_of(args, 0.25, bfloat16=False)(problem).implicit[0].item()
    # ∂²(V²M)/∂M∂V · v = 2V · 5 = 20; a one-sided difference adds the radius times 5.
    assert implicit == pytest.approx(-20 * factor, rel=5e-3)


def test_radius_is_that_of_the_precision(tmp_path):
    moved = []
    direction = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    magnitude = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def loss():
        moved.append(direction.item())
        return (direction * direction * magnitude).sum()

    lower = ReplayedLoss(loss, capture_random_state())
    problem = BilevelProblem([lower], [lambda: (5 * direction).sum()], [direction], [magnitude])
    args = BiDoRAArguments(str(tmp_path), report_to=[], use_cpu=True)
    for bfloat16 in (True, False):
        estimator_of(args, 0.1, bfloat16=bfloat16)(problem)
    # Central in bfloat16; in float32 one-sided, which here has to take the gradient at the present direction itself.
    assert moved == pytest.approx([0.1, -0.1, 0.01, 0.0])
