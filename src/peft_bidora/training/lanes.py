"""Train lanes side by side: one pass of the base model for all, everything else each its own."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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
from peft_bidora.bilevel.hypergradient import BilevelProblem
from peft_bidora.bilevel.randomness import (
    RandomState,
    ReplayedLoss,
    capture_random_state,
    preserved_random_state,
    set_random_state,
)
from peft_bidora.bilevel.response import Response, adam_response
from peft_bidora.bilevel.step import descend
from peft_bidora.bilevel.tensors import norm, scaled
from peft_bidora.errors import CheckpointError, NonFiniteError
from peft_bidora.training.arguments import XI_OF_ADAM, BiDoRAArguments, estimator_for
from peft_bidora.training.lane import Best, Lane, LanePhase, Rows
from peft_bidora.training.upper_level import bound_estimator, estimator_options

PHASES = ("search", "retrain")
Collate = Callable[[list[Any]], dict[str, Any]]


# Takes the phase, its steps done and in all, and the best selection metric of each lane that has one.
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
        members = [lane for lane in lanes if phase in lane.arguments and lane.stopped is None]
        passed = state is not None and PHASES.index(phase) < PHASES.index(state["phase"])
        if not members or passed:
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
        self._model, self._lanes, self._phase, self._collate = model, lanes, phase, collate
        self._args = lanes[0].arguments[phase]
        self._steps, self._step = lanes[0].steps(phase), 0
        values, scalings = [lane.values for lane in lanes], [lane.scaling for lane in lanes]
        self._stacked: Lanes = stack_lanes(model, values, scalings, norm_in_graph=phase == "search")
        self._views = [self._stacked.of_lane(index) for index in range(len(lanes))]
        self._parts = [LanePhase(lane, phase, views) for lane, views in zip(lanes, self._views, strict=True)]
        self._direction = list(self._stacked.direction.values())
        self._magnitude = list(self._stacked.magnitude.values())
        lower = [any(name in part.lower for name in self._stacked.magnitude) for part in self._parts]
        self._magnitude_is_lower = self._vector(lower)
        self._bfloat16 = self._args.bf16 or rounds_coarsely(model)
        gammas = [part.args.orthogonality if phase == "search" else 0.0 for part in self._parts]
        self._gamma = self._vector(gammas)
        self._regularizer = OrthogonalityRegularizer(model) if any(gammas) else None
        self._reads_labels = bool(getattr(model.config, "is_encoder_decoder", False))  # to shift them for the decoder
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
            watch(self._phase, self._step, self._steps, best)
        for index, part in enumerate(self._parts):
            self._leave(part, self._values(index))
        return perf_counter() - self._start

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written, with those of its lanes that are here."""
        self._step = state["step"]
        for part, views in zip(self._parts, self._views, strict=True):
            of_lane = state["lanes"][part.lane.name]
            for name, value in of_lane["values"].items():
                views[name].copy_(value)
            part.load_state_dict(of_lane)
        set_random_state(RandomState(state["random"], tuple(state["random_of_devices"])))

    def _leave(self, part: LanePhase, found: dict[str, Tensor]) -> None:
        """Leave in a lane what the phase found: the best values, or the last; of a search the magnitudes."""
        lane = part.lane
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
        batch = self._batch([part.next_rows() for part in self._parts])
        state = capture_random_state()
        losses = self._losses(*batch)
        torch.autograd.backward(losses.sum())
        if self._regularizer is not None:
            self._regularizer.add_gradient(self._gamma, self._step)
        if due:
            self._upper_step(estimator, ReplayedLoss(partial(self._losses, *batch), state))
        self._lower_step(losses.detach())

    def _lower_step(self, losses: Tensor) -> None:
        """Clip the gradient of each lane by itself, and step with its own optimiser."""
        trained = {**self._stacked.direction}
        gradients = {name: p.grad for name, p in trained.items() if p.grad is not None}
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
                part.lane.stopped = part.lane.stopped or (
                    f"{self._phase} step {self._step + 1}: the loss is {loss:.4g}, the norm of its gradient {size:.4g};"
                    " both must be finite. Lower the learning rate, set max_grad_norm, or train in float32."
                )
            if not part.is_moving:
                continue
            part.losses.append(losses[index])
            for name in part.lower:
                self._views[index][name].grad = clipped[name][index] if name in clipped else None
            part.optimizer.step()
            part.optimizer.zero_grad()
            part.scheduler.step()
            if part.upper is not None and part.args.settled is not None:
                part.settled = part.upper.has_settled(part.args.settled)
        for parameter in (*self._direction, *self._magnitude):
            parameter.grad = None

    def _upper_step(self, name: str, lower_loss: ReplayedLoss) -> None:
        taken = [parameter.grad for parameter in self._magnitude]
        for parameter in self._magnitude:
            parameter.grad = None
        require_gradient(self._magnitude, True)
        batch = self._batch([part.next_upper_rows() for part in self._parts])
        problem = BilevelProblem(
            lower_losses=[lower_loss],
            upper_losses=[partial(self._losses, *batch)],
            direction=self._direction,
            magnitude=self._magnitude,
            lower_magnitude_gradient=taken if name == "one-sided" else None,  # type: ignore[arg-type]
            response=self._response() if self._args.xi == XI_OF_ADAM else None,
            lanes=True,
        )
        told = [estimator_options(part.args, part.learning_rate(), bfloat16=self._bfloat16) for part in self._parts]
        options = {option: self._vector([each[option] for each in told]) for option in told[0]}
        gradient = bound_estimator(name, options)(problem)
        require_gradient(self._magnitude, False)
        for index, part in enumerate(self._parts):
            if part.upper is None or not part.is_moving:
                continue
            of_lane = gradient.of_lane(index)
            try:
                descend(
                    part.magnitude,
                    of_lane,
                    part.upper.optimizer,
                    max_norm=part.args.max_grad_norm,
                    step=self._step + 1,
                )
            except NonFiniteError as error:
                part.lane.stopped = str(error)
                continue
            part.upper.finish_step(of_lane)
        for parameter, added in zip(self._direction, gradient.lower or (), strict=gradient.lower is not None):
            parameter.grad = added if parameter.grad is None else parameter.grad.add_(added)

    def _response(self) -> Response:
        """Return the responses of the lanes' own optimisers, side by side."""
        names = list(self._stacked.direction)
        responses = []
        for index, part in enumerate(self._parts):
            gradients = [
                torch.zeros_like(p[index]) if p.grad is None else p.grad[index].clone() for p in self._direction
            ]
            views = [self._views[index][name] for name in names]
            responses.append(adam_response(part.optimizer, views, gradients, max_norm=part.args.max_grad_norm))

        def response(vector: Sequence[Tensor]) -> tuple[Tensor, ...]:
            answers = [each([part[index] for part in vector]) for index, each in enumerate(responses)]
            return tuple(torch.stack(parts) for parts in zip(*answers, strict=True))

        return response

    def _batch(self, rows: list[list[Mapping[str, Any]]]) -> tuple[dict[str, Any], list[int]]:
        """Return a batch of as many rows of each lane, those of a shorter one filled up, and how many each has."""
        most = max(map(len, rows))
        filled = [row for each in rows for row in [*each, *[each[0]] * (most - len(each))]]
        batch = self._collate([dict(row) for row in filled])
        device = self._model.device
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
        return moved, [len(each) for each in rows]

    def _outputs(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return logits and labels by lane, (lanes, rows, ...)."""
        inputs = {name: value for name, value in batch.items() if name != "labels" or self._reads_labels}
        logits, labels = self._model(**inputs)["logits"], batch["labels"]
        lanes = len(self._parts)
        return logits.view(lanes, -1, *logits.shape[1:]), labels.view(lanes, -1, *labels.shape[1:])

    def _losses(self, batch: dict[str, Any], counts: list[int]) -> Tensor:
        """Return the loss of each lane, (lanes,)."""
        with self._precision():
            logits, labels = self._outputs(batch)
            each = zip(self._parts, logits, labels, counts, strict=True)
            return torch.stack([part.lane.loss(own[:count], of[:count]) for part, own, of, count in each])

    def _precision(self) -> Any:
        if not self._args.bf16:
            return nullcontext()
        return torch.autocast(self._model.device.type, torch.bfloat16)

    def _evaluate(self) -> None:
        """Score the selection rows of each lane, and keep the values that are the best so far."""
        scored = [index for index, part in enumerate(self._parts) if "selection" in part.lane.rows]
        if not scored:
            return
        self._model.eval()
        gathered: list[list[Any]] = [[] for _ in self._parts]
        size = max(1, self._args.per_device_eval_batch_size // len(self._parts), self._args.per_device_train_batch_size)
        rows = [part.lane.rows.get("selection") or part.lane.rows["retrain"] for part in self._parts]
        longest = max(len(rows[index]) for index in scored)
        with torch.no_grad(), preserved_random_state(), self._precision():
            for start in range(0, longest, size):
                drawn = [_slice(each, start, start + size) for each in rows]
                batch, _ = self._batch([each or _slice(rows[0], 0, 1) for each in drawn])
                logits, labels = self._outputs(batch)
                for index in scored:
                    if count := len(drawn[index]):
                        lane = self._parts[index].lane
                        gathered[index].append(lane.measured(logits[index][:count], labels[index][:count]))
        for index in scored:
            part = self._parts[index]
            metrics = part.lane.metrics(gathered[index])
            part.lane.log.append(
                {"phase": self._phase, "step": self._step, **{f"eval_{name}": each for name, each in metrics.items()}}
            )
            if part.args.load_best_model_at_end and part.is_moving:
                best = None if part.best is None else part.best.metrics
                if part.lane.is_better(metrics, best):
                    part.best = Best(self._step, metrics, self._values(index))

    def _values(self, index: int) -> dict[str, Tensor]:
        """Return a copy of the parameters of a lane, on the CPU."""
        return {name: self._views[index][name].to("cpu", copy=True) for name in self._parts[index].lane.values}

    def _vector(self, values: Sequence[float | bool]) -> Tensor:
        """Return one number a lane, (lanes,), in the precision of the parameters; bools as they are."""
        like = next(iter(self._stacked.direction.values()))
        if isinstance(values[0], bool):
            return torch.tensor(values, device=like.device)
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def _save(self, path: Path) -> None:
        """Write the state so that a kill leaves the old file or the new one."""
        random = capture_random_state()
        state = {
            "phase": self._phase,
            "step": self._step,
            "seconds": perf_counter() - self._start,
            "names": [lane.name for lane in self._group],
            "stopped": {lane.name: lane.stopped for lane in self._group},
            "lanes": {part.lane.name: part.state_dict(self._values(index)) for index, part in enumerate(self._parts)},
            "random": random.cpu,
            "random_of_devices": list(random.devices),
        }
        partial_path = path.with_name(path.name + ".partial")
        torch.save(state, partial_path)
        os.replace(partial_path, path)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return what was written to a checkpoint; None where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}). Remove it: its lanes are then trained from the beginning."
        ) from error
    return state


def _slice(rows: Rows, start: int, stop: int) -> list[Mapping[str, Any]]:
    return [rows[index] for index in range(start, min(stop, len(rows)))]
