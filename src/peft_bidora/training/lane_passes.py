"""Passes of one model over the rows of all lanes: as many rows of each, those of like length together."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_bidora.bilevel.randomness import preserved_random_state
from peft_bidora.training.lane import Lane, Measured, Rows

# Of all lanes in a pass: more keep a device busy, fewer are padded less.
ROWS_ON_CPU, ROWS = 32, 2048
Collate = Callable[[list[Any]], dict[str, Any]]


def rows_a_pass(device: torch.device, lanes: int) -> int:
    """Return how many rows of a lane go through the model at once."""
    return max(1, (ROWS_ON_CPU if device.type == "cpu" else ROWS) // lanes)


@dataclass(frozen=True)
class Chunk:
    """Rows that go through the model at once.

    Args:
        batch: collated, as many rows of each lane, one lane after the other.
        counts: of each lane how many of its rows are no filling.
        items: of each lane what the loss of its whole batch is a mean over.
    """

    batch: dict[str, Any]
    counts: list[int]
    items: Sequence[float]


class LanePasses:
    """Losses and predictions of lanes.

    Args:
        model: computes for all of them.
        lanes: in the order of the model's lane axis.
        collate: pads rows into a batch.
        bfloat16: whether to compute under autocast.
    """

    def __init__(self, model: Any, lanes: Sequence[Lane], collate: Collate, *, bfloat16: bool) -> None:
        self._model, self._lanes, self._collate, self._bfloat16 = model, lanes, collate, bfloat16
        self._reads_labels = bool(getattr(model.config, "is_encoder_decoder", False))  # to shift them for the decoder

    def chunks(self, rows: list[list[Mapping[str, Any]]]) -> list["Chunk"]:
        """Divide a batch into passes over rows of like length: the shortest of each lane first, then the next.

        The losses of the passes add up to that of the batch, whose rows are those that each lane would draw alone.
        """
        items = [lane.items(each) for lane, each in zip(self._lanes, rows, strict=True)]
        ordered = [sorted(each, key=_length) for each in rows]
        size, most = rows_a_pass(self._model.device, len(rows)), max(map(len, rows))
        chunks = [[each[start : start + size] for each in ordered] for start in range(0, most, size)]
        return [self._collated(chunk, items) for chunk in chunks]

    def selection(self, scored: Sequence[int]) -> dict[int, tuple[list[Measured], list[int]]]:
        """Return what was measured on the selection rows of some lanes, batch by batch, and the order of the rows."""
        self._model.eval()
        gathered: dict[int, list[Measured]] = {index: [] for index in scored}
        rows = [_all_rows(lane.rows.get("selection", [])) for lane in self._lanes]
        order = [sorted(range(len(each)), key=lambda row, of=each: _length(of[row])) for each in rows]  # type: ignore[misc]
        size = rows_a_pass(self._model.device, len(self._lanes))
        with torch.no_grad(), preserved_random_state(), self._precision():
            for start in range(0, max(map(len, rows)), size):
                drawn = [[each[row] for row in of[start : start + size]] for each, of in zip(rows, order, strict=True)]
                logits, labels = self._outputs(self._collated(drawn))
                for index in scored:
                    if count := len(drawn[index]):
                        part = logits[index][:count], labels[index][:count], drawn[index]
                        gathered[index].append(self._lanes[index].measured(*part))
        return {index: (batches, order[index]) for index, batches in gathered.items()}

    def _collated(self, rows: list[list[Mapping[str, Any]]], items: Sequence[float] = ()) -> "Chunk":
        """Return a batch of as many rows of each lane, those of a shorter one filled up."""
        most, some = max(map(len, rows)), next(each[0] for each in rows if each)
        filled = [row for each in rows for row in [*each, *[some] * (most - len(each))]]
        batch = self._collate([dict(row) for row in filled])
        device = self._model.device
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
        return Chunk(moved, [len(each) for each in rows], items)

    def _outputs(self, chunk: "Chunk") -> tuple[Tensor, Tensor]:
        """Return logits and labels by lane, (lanes, rows, ...)."""
        inputs = {name: value for name, value in chunk.batch.items() if name != "labels" or self._reads_labels}
        logits, labels = self._model(**inputs)["logits"], chunk.batch["labels"]
        lanes = len(self._lanes)
        return logits.view(lanes, -1, *logits.shape[1:]), labels.view(lanes, -1, *labels.shape[1:])

    def losses(self, chunk: "Chunk") -> Tensor:
        """Return the share of the loss of each lane that a chunk has, (lanes,)."""
        with self._precision():
            logits, labels = self._outputs(chunk)
            each = zip(self._lanes, logits, labels, chunk.counts, chunk.items, strict=True)
            return torch.stack([lane.loss(own[:count], of[:count], n) for lane, own, of, count, n in each])

    def _precision(self) -> Any:
        if not self._bfloat16:
            return nullcontext()
        return torch.autocast(self._model.device.type, torch.bfloat16)


def _length(row: Mapping[str, Any]) -> int:
    return len(row["input_ids"])


def _all_rows(rows: Rows) -> list[Mapping[str, Any]]:
    return [rows[index] for index in range(len(rows))]
