"""Train lanes side by side: one pass of the base model for all, everything else each its own."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from peft_bidora.training.lane import Best, Lane, LanePhase, Measured, Rows
from peft_bidora.training.upper_level import bound_estimator, estimator_options

PHASES = ("search", "retrain")
# Of all lanes in a pass: more keep a device busy, fewer are padded less.
ROWS_ON_CPU, ROWS = 32, 2048
Collate = Callable[[list[Any]], dict[str, Any]]


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


def rows_a_pass(device: torch.device, lanes: int) -> int:
    """Return how many rows of a lane go through the model at once."""
    return max(1, (ROWS_ON_CPU if device.type == "cpu" else ROWS) // lanes)


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
            best.sort(reverse=bool(self._parts[0].args.greater_is_better))
            watch(self._phase, self._step, self._steps, best)
        self._save(checkpoint)  # a kill after it trains nothing anew
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
        for chunk in self._chunks([part.next_rows() for part in self._parts]):
            loss = partial(self._losses, chunk)
            if due:
                replayed.append(ReplayedLoss(loss, capture_random_state()))
            losses = loss()
            torch.autograd.backward(losses.sum())
            total = total + losses.detach()
        if self._regularizer is not None:
            self._regularizer.add_gradient(self._gamma, self._step)
        if due:
            self._upper_step(estimator, replayed)
        self._lower_step(total)

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
                what = f"the loss is {loss:.4g} and the norm of its gradient {size:.4g}; both must be finite"
                part.lane.stop(f"{self._phase} step {self._step + 1}", what)
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

    def _upper_step(self, name: str, lower_losses: list[ReplayedLoss]) -> None:
        taken = [parameter.grad for parameter in self._magnitude]
        for parameter in self._magnitude:
            parameter.grad = None
        require_gradient(self._magnitude, True)
        chunks = self._chunks([part.next_upper_rows() for part in self._parts])
        problem = BilevelProblem(
            lower_losses=lower_losses,
            upper_losses=[partial(self._losses, chunk) for chunk in chunks],
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

    def _chunks(self, rows: list[list[Mapping[str, Any]]]) -> list["_Chunk"]:
        """Divide a batch into passes over rows of like length: the shortest of each lane first, then the next.

        The losses of the passes add up to that of the batch, whose rows are those that each lane would draw alone.
        """
        items = [part.lane.items(each) for part, each in zip(self._parts, rows, strict=True)]
        ordered = [sorted(each, key=_length) for each in rows]
        size, most = rows_a_pass(self._model.device, len(rows)), max(map(len, rows))
        chunks = [[each[start : start + size] for each in ordered] for start in range(0, most, size)]
        return [self._collated(chunk, items) for chunk in chunks]

    def _collated(self, rows: list[list[Mapping[str, Any]]], items: Sequence[float] = ()) -> "_Chunk":
        """Return a batch of as many rows of each lane, those of a shorter one filled up."""
        most, some = max(map(len, rows)), next(each[0] for each in rows if each)
        filled = [row for each in rows for row in [*each, *[some] * (most - len(each))]]
        batch = self._collate([dict(row) for row in filled])
        device = self._model.device
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
        return _Chunk(moved, [len(each) for each in rows], items)

    def _outputs(self, chunk: "_Chunk") -> tuple[Tensor, Tensor]:
        """Return logits and labels by lane, (lanes, rows, ...)."""
        inputs = {name: value for name, value in chunk.batch.items() if name != "labels" or self._reads_labels}
        logits, labels = self._model(**inputs)["logits"], chunk.batch["labels"]
        lanes = len(self._parts)
        return logits.view(lanes, -1, *logits.shape[1:]), labels.view(lanes, -1, *labels.shape[1:])

    def _losses(self, chunk: "_Chunk") -> Tensor:
        """Return the share of the loss of each lane that a chunk has, (lanes,)."""
        with self._precision():
            logits, labels = self._outputs(chunk)
            each = zip(self._parts, logits, labels, chunk.counts, chunk.items, strict=True)
            return torch.stack([part.lane.loss(own[:count], of[:count], n) for part, own, of, count, n in each])

    def _precision(self) -> Any:
        if not self._args.bf16:
            return nullcontext()
        return torch.autocast(self._model.device.type, torch.bfloat16)

    def _evaluate(self) -> None:
        """Score the selection rows of each lane, and keep the values that are the best so far."""
        scored = [
            index
            for index, part in enumerate(self._parts)
            if "selection" in part.lane.rows and part.lane.stopped is None
        ]
        if not scored:
            return
        self._model.eval()
        gathered: list[list[Measured]] = [[] for _ in self._parts]
        rows = [_all_rows(part.lane.rows.get("selection", [])) for part in self._parts]
        order = [sorted(range(len(each)), key=lambda row, of=each: _length(of[row])) for each in rows]  # type: ignore[misc]
        size = rows_a_pass(self._model.device, len(self._parts))
        with torch.no_grad(), preserved_random_state(), self._precision():
            for start in range(0, max(map(len, rows)), size):
                drawn = [[each[row] for row in of[start : start + size]] for each, of in zip(rows, order, strict=True)]
                logits, labels = self._outputs(self._collated(drawn))
                for index in scored:
                    if count := len(drawn[index]):
                        lane = self._parts[index].lane
                        measured = lane.measured(logits[index][:count], labels[index][:count], drawn[index])
                        gathered[index].append(measured)
        for index in scored:
            part = self._parts[index]
            if not all(math.isfinite(each.loss) for each in gathered[index]):
                part.lane.stop(f"{self._phase} step {self._step}", "the loss of the selection rows is not finite")
                continue
            metrics = part.lane.metrics(gathered[index], order[index])
            part.lane.log.append(
                {"phase": self._phase, "step": self._step, **{f"eval_{name}": each for name, each in metrics.items()}}
            )
            saved = self._step == self._steps or self._step % self._args.save_steps == 0
            if part.args.load_best_model_at_end and part.is_moving and saved:
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
        write_checkpoint(path, state)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that a kill leaves the old file or the new one, and a full disk the old one alone."""
    partial_path = path.with_name(path.name + ".partial")
    try:
        torch.save(dict(state), partial_path)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)


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


@dataclass(frozen=True)
class _Chunk:
    """Rows that go through the model at once.

    Args:
        batch: collated, as many rows of each lane, one lane after the other.
        counts: of each lane how many of its rows are no filling.
        items: of each lane what the loss of its whole batch is a mean over.
    """

    batch: dict[str, Any]
    counts: list[int]
    items: Sequence[float]


def _length(row: Mapping[str, Any]) -> int:
    return len(row["input_ids"])


def _all_rows(rows: Rows) -> list[Mapping[str, Any]]:
    return [rows[index] for index in range(len(rows))]
