"""Train lanes side by side: one pass of the base model for all, everything else each its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from peft_bidora.adapter.lanes import Lanes, stack_lanes
from peft_bidora.adapter.packed import rounds_coarsely
from peft_bidora.adapter.parameters import require_gradient
from peft_bidora.adapter.regularizer import OrthogonalityRegularizer
from peft_bidora.bilevel.randomness import (
    RandomState,
    ReplayedLoss,
    capture_random_state,
    set_random_state,
)
from peft_bidora.bilevel.tensors import norm, scaled
from peft_bidora.training.arguments import BiDoRAArguments, estimator_for
from peft_bidora.training.lane import Lane
from peft_bidora.training.lane_checkpoint import read_checkpoint, write_checkpoint
from peft_bidora.training.lane_passes import Collate, LanePasses
from peft_bidora.training.lane_phase import Best, LanePhase
from peft_bidora.training.lane_upper import descend_lanes

PHASES = ("search", "retrain")
# Takes the phase, its steps done and in all, and the best selection metric of each lane that has one, best first.
Watch = Callable[[str, int, int, list[float]], None]


def train_lanes(
    model: Any,
    lanes: Sequence[Lane],
    collate: Collate,
    checkpoint: Path,
    watch: Watch = lambda *_: None,
) -> float:
    """Train lanes, each to what its Trainer alone would make of it; leave the trained values in them.

    A lane whose loss, or the gradient of it, is not finite is stopped where it is; the others go on untouched.

    Args:
        model: the PEFT model of one of them, of the kind with magnitudes if one has any; it computes for all.
        lanes: of one shape: base model, adapted modules, rank, batch sizes, steps and estimator.
        collate: pads rows into a batch.
        checkpoint: a file that is written at each `save_steps`; one that is there is gone on from.
        watch: is told the progress.

    Returns:
        the seconds of training, those before the checkpoint among them.
    """
    state = read_checkpoint(checkpoint)
    seconds = 0.0 if state is None else float(state["seconds"])
    if state is not None:
        for lane in lanes:
            lane.stopped = state["stopped"][lane.name]
    for phase in PHASES:
        if state is not None and PHASES.index(phase) < PHASES.index(state["phase"]):
            continue
        # A lane that was stopped in this phase stays in it: without its rows the others would draw other masks.
        of_phase = [lane for lane in lanes if phase in lane.arguments]
        begun = {} if state is None else state["lanes"]
        members = [lane for lane in of_phase if (lane.name in begun if begun else lane.stopped is None)]
        if not members:
            continue
        training = _Phase(model, members, phase, collate, seconds, lanes)
        if state is not None:
            training.load_state_dict(state)
            state = None
        seconds = training.run(checkpoint, watch)
    return seconds


class _Phase:
    """A phase of the training of some lanes."""

    def __init__(
        self, model: Any, lanes: Sequence[Lane], phase: str, collate: Collate, seconds: float, group: Sequence[Lane]
    ) -> None:
        self._group = group  # those that are not in this phase too
        self._start = perf_counter() - seconds
        self._model, self._phase = model, phase
        self._args = lanes[0].arguments[phase]
        self._steps, self._step = lanes[0].steps(phase), 0
        values, scalings = [lane.values for lane in lanes], [lane.scaling for lane in lanes]
        self._stacked: Lanes = stack_lanes(model, values, scalings, norm_in_graph=phase == "search")
        self._parts = [LanePhase(lane, phase, self._stacked.of_lane(index)) for index, lane in enumerate(lanes)]
        self._direction = list(self._stacked.direction.values())
        self._magnitude = list(self._stacked.magnitude.values())
        lower = [any(name in part.lower for name in self._stacked.magnitude) for part in self._parts]
        self._magnitude_is_lower = self._vector(lower)
        self._bfloat16 = self._args.bf16 or rounds_coarsely(model)
        gammas = [part.args.orthogonality if phase == "search" else 0.0 for part in self._parts]
        self._gamma = self._vector(gammas)
        self._regularizer = OrthogonalityRegularizer(model) if any(gammas) else None
        self._passes = LanePasses(model, lanes, collate, bfloat16=self._args.bf16)
        set_seed(self._args.seed + (isinstance(self._args, BiDoRAArguments) and phase == "retrain"))

    def run(self, checkpoint: Path, watch: Watch) -> float:
        """Train to the end of the phase, and leave what it found in the lanes; return the seconds until now."""
        self._save(checkpoint)
        while self._step < self._steps and any(part.is_moving for part in self._parts):
            self._take_step()
            self._step += 1
            at_end = self._step == self._steps
            if self._step % self._args.logging_steps == 0 or at_end:
                for part in self._parts:
                    part.drain_log(self._step)
            if self._phase == "retrain" and (self._step % self._args.eval_steps == 0 or at_end):
                self._evaluate()
            if self._step % self._args.save_steps == 0 and not at_end:
                self._save(checkpoint)
            best = [part.lane.chosen(part.best.metrics) for part in self._parts if part.best is not None]
            best.sort(reverse=bool(self._parts[0].args.greater_is_better))
            watch(self._phase, self._step, self._steps, best)
        self._save(checkpoint)  # a kill after it trains nothing anew
        for part in self._parts:
            self._leave(part, self._values(part))
        return perf_counter() - self._start

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written, with those of its lanes that are here."""
        self._step = state["step"]
        for part in self._parts:
            of_lane = state["lanes"][part.lane.name]
            for name, value in of_lane["values"].items():
                part.views[name].copy_(value)
            part.load_state_dict(of_lane)
        set_random_state(RandomState(state["random"], tuple(state["random_of_devices"])))

    def _leave(self, part: LanePhase, found: dict[str, Tensor]) -> None:
        """Leave in a lane what the phase found: the best values, or the last; of a search the magnitudes."""
        lane = part.lane
        if not all(bool(value.isfinite().all()) for value in found.values()):
            lane.stop(f"{self._phase} step {self._step}", "a trained parameter is not finite")
        if self._phase == "search" and part.args.retrain_from == "initial":
            lane.values |= {name: value for name, value in found.items() if "lora_magnitude_vector" in name}
            return
        lane.values, step = (found, self._step) if part.best is None else (part.best.values, part.best.step)
        lane.kept = {"step": step, "of": self._step}

    def _take_step(self) -> None:
        due = self._phase == "search" and (self._step + 1) % self._args.lower_steps == 0
        estimator = estimator_for(self._args.hypergradient, bfloat16=self._bfloat16) if due else ""
        require_gradient(self._magnitude, estimator == "one-sided" or bool(self._magnitude_is_lower.any()))
        self._model.train()
        total, replayed = torch.zeros(len(self._parts), device=self._model.device), []
        for chunk in self._passes.chunks([part.next_rows() for part in self._parts]):
            loss = partial(self._passes.losses, chunk)
            if due:
                replayed.append(ReplayedLoss(loss, capture_random_state()))
            losses = loss()
            torch.autograd.backward(losses.sum())
            total = total + losses.detach()
        if self._regularizer is not None:
            self._regularizer.add_gradient(self._gamma, self._step)
        if due:
            upper = self._passes.chunks([part.next_upper_rows() for part in self._parts])
            losses_of_upper = [partial(self._passes.losses, chunk) for chunk in upper]
            options: dict[str, Any] = {"estimator": estimator, "bfloat16": self._bfloat16, "step": self._step + 1}
            descend_lanes(self._parts, self._stacked, replayed, losses_of_upper, **options)
        self._lower_step(total)

    def _lower_step(self, losses: Tensor) -> None:
        """Clip the gradient of each lane by itself, and step with its own optimiser."""
        gradients = {name: p.grad for name, p in self._stacked.direction.items() if p.grad is not None}
        lower = self._magnitude_is_lower.to(losses.dtype)
        for name, parameter in self._stacked.magnitude.items():
            if parameter.grad is not None:
                (gradients[name],) = scaled([parameter.grad], lower.to(parameter.dtype))
        length = norm(list(gradients.values()), lanes=True)
        most = self._vector([part.args.max_grad_norm for part in self._parts]).to(length)
        kept = torch.where(most > 0, (most / (length + 1e-6)).clamp(max=1.0), 1.0)
        clipped = dict(zip(gradients, scaled(list(gradients.values()), kept), strict=True))
        found = torch.stack([losses.to(length), length]).T.tolist()  # the one transfer of a step
        for index, (part, (loss, size)) in enumerate(zip(self._parts, found, strict=True)):
            if not (abs(loss) < float("inf") and size < float("inf")):
                what = f"the loss is {loss:.4g} and the norm of its gradient {size:.4g}; both must be finite"
                part.lane.stop(f"{self._phase} step {self._step + 1}", what)
            if not part.is_moving:
                continue
            part.losses.append(losses[index])
            part.told = {"grad_norm": size, "learning_rate": part.learning_rate()}
            for name in part.lower:
                part.views[name].grad = clipped[name][index] if name in clipped else None
            part.optimizer.step()
            part.optimizer.zero_grad()
            part.scheduler.step()
            if part.upper is not None and part.args.settled is not None:
                part.settled = part.upper.has_settled(part.args.settled)
        for parameter in (*self._direction, *self._magnitude):
            parameter.grad = None

    def _evaluate(self) -> None:
        """Score the selection rows of each lane, and keep the values that are the best so far."""
        scored = [
            index
            for index, part in enumerate(self._parts)
            if "selection" in part.lane.rows and part.lane.stopped is None
        ]
        if not scored:
            return
        found = self._passes.selection(scored)
        for index in scored:
            part = self._parts[index]
            batches, order = found[index]
            if not all(math.isfinite(each.loss) for each in batches):
                part.lane.stop(f"{self._phase} step {self._step}", "the loss of the selection rows is not finite")
                continue
            metrics = part.lane.metrics(batches, order)
            part.lane.log.append(
                {"phase": self._phase, "step": self._step, **{f"eval_{name}": each for name, each in metrics.items()}}
            )
            saved = self._step == self._steps or self._step % self._args.save_steps == 0
            if part.args.load_best_model_at_end and part.is_moving and saved:
                best = None if part.best is None else part.best.metrics
                if part.lane.is_better(metrics, best):
                    part.best = Best(self._step, metrics, self._values(part))

    def _values(self, part: LanePhase) -> dict[str, Tensor]:
        """Return a copy of the parameters of a lane, on the CPU."""
        return {name: part.views[name].to("cpu", copy=True) for name in part.lane.values}

    def _vector(self, values: Sequence[float | bool]) -> Tensor:
        """Return one number a lane, (lanes,), in the precision of the parameters; bools as they are."""
        like = next(iter(self._stacked.direction.values()))
        if isinstance(values[0], bool):
            return torch.tensor(values, device=like.device)
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def _save(self, path: Path) -> None:
        random = capture_random_state()
        state = {
            "phase": self._phase,
            "step": self._step,
            "seconds": perf_counter() - self._start,
            "names": [lane.name for lane in self._group],
            "stopped": {lane.name: lane.stopped for lane in self._group},
            "lanes": {part.lane.name: part.state_dict(self._values(part)) for part in self._parts},
            "random": random.cpu,
            "random_of_devices": list(random.devices),
        }
        write_checkpoint(path, state)
