"""Ranks divide the rows of a batch: each row once, as many batches each, in the order of one process."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, SequentialSampler
from transformers import default_data_collator

from peft_bidora.errors import DataError
from peft_bidora.training.rank_rows import CollateOrBlank, EvaluationBatches, TrainingBatches
from peft_bidora.training.upper_batches import UpperBatches

counts = st.integers(1, 60)
sizes = st.integers(1, 9)
worlds = st.integers(1, 5)


@given(counts, sizes, worlds, st.booleans())
def test_training_batches_of_all_ranks_are_those_of_one_process(rows: int, size: int, ranks: int, drop: bool) -> None:
    order = SequentialSampler(range(rows))
    parts = [TrainingBatches(order, size, rank, ranks, drop_last=drop) for rank in range(ranks)]
    whole = list(TrainingBatches(order, size * ranks, 0, 1, drop_last=drop))
    assert {len(part) for part in parts} == {len(whole)}
    together = [[row for batch in batches for row in batch] for batches in zip(*parts, strict=True)]
    assert together == whole
    assert all(len(batch) <= size for part in parts for batch in part)


@given(counts, sizes, worlds)
def test_evaluation_batches_in_turn_are_the_rows_in_their_order(rows: int, size: int, ranks: int) -> None:
    parts = [list(EvaluationBatches(rows, size, rank, ranks)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(EvaluationBatches(rows, size, 0, ranks))}
    rounds = list(zip(*parts, strict=True))
    assert [row for batches in rounds for batch in batches for row in batch] == list(range(rows))
    assert all(len({len(batch) for batch in batches}) == 1 for batches in rounds[:-1])
    # Blanks stand in a last round of one row a rank alone, and accelerate cuts as many rows off.
    missing = sum(not batch for batch in rounds[-1])
    assert missing == -rows % ranks
    assert not missing or all(len(batch) <= 1 for batch in rounds[-1])


@given(counts, sizes, worlds, st.integers(1, 3))
def test_upper_batches_are_those_of_one_process_by_any_number_of_ranks(
    rows: int, size: int, ranks: int, accumulation: int
) -> None:
    def collate(batch: list[int]) -> dict[str, Any]:
        return {"rows": batch, "labels": torch.tensor(batch)}

    def ids(batches: list[dict[str, Any]]) -> list[int]:
        return [row for batch in batches if not (batch["labels"] == -100).all() for row in batch["rows"]]

    one = UpperBatches(range(rows), collate, size * ranks * accumulation, 1, seed=3)
    several = [UpperBatches(range(rows), collate, size, accumulation, 3, rank, ranks) for rank in range(ranks)]
    for _ in range(4):
        whole, parts = one.next_batch(), [part.next_batch() for part in several]
        assert len({len(part) for part in parts}) == 1
        assert sorted(row for part in parts for row in ids(part)) == sorted(ids(whole))
        assert all(part.order.state_dict() == one.order.state_dict() for part in several)


def test_batch_of_no_rows_has_labels_that_count_for_nothing(make_rows: Callable[..., Any]) -> None:
    rows = make_rows(3)
    loader = DataLoader(rows, batch_sampler=[[0, 1], []], collate_fn=CollateOrBlank(rows, default_data_collator))
    full, blank = loader
    assert full["labels"].tolist() == [row["labels"] for row in rows[:2]]
    assert blank["labels"].tolist() == [-100]
    assert blank["input_ids"].tolist() == [rows[0]["input_ids"]]


def test_rows_without_labels_cannot_be_divided(make_rows: Callable[..., Any]) -> None:
    rows = [{"input_ids": row["input_ids"], "start_positions": 0} for row in make_rows(3)]
    with pytest.raises(DataError, match="A batch has input_ids, start_positions; expected labels, by which several"):
        CollateOrBlank(rows, default_data_collator)([])
