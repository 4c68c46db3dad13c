"""The task of text generation: what it tells of predictions, and what it remembers."""

import json
import math

import numpy as np
import pytest

from peft_bidora.tasks.generating import Generated
from peft_bidora.tasks.registry import find_task
from peft_bidora.tasks.text_generation import TEXT_GENERATION, TextGeneration

TASK = TextGeneration(encoder_decoder=False, separator="\n", generation={"max_new_tokens": 8}, seed=3)
PREDICTIONS = [Generated("a cat sat here", True, 2.0, 4), Generated("", False, 6.0, 2)]
LABELS = [("a cat sat here", "a cat"), ("the dog",)]


def test_task_is_found_by_its_name() -> None:
    assert find_task("text-generation") is TEXT_GENERATION


def test_state_restores_the_task_through_json() -> None:
    assert TEXT_GENERATION.restore(json.loads(json.dumps(TASK.state()))) == TASK


@pytest.mark.parametrize(
    ("encoder_decoder", "peft_type", "reserved"), [(False, "CAUSAL_LM", 8), (True, "SEQ_2_SEQ_LM", 0)]
)
def test_kind_of_model_decides_the_adapters_task_type(encoder_decoder, peft_type, reserved) -> None:
    task = TextGeneration(encoder_decoder, "", {"max_new_tokens": 8}, 0)
    assert (task.peft_type, task.reserved) == (peft_type, reserved)


def test_scores_are_all_metrics_in_their_order() -> None:
    found = TASK.scores(PREDICTIONS, LABELS)
    assert tuple(found) == TASK.metrics
    assert found["perplexity"] == pytest.approx(math.exp(8 / 6))
    assert found["rouge_l"] == 0.5


def test_resampled_scores_are_spread_around_the_score() -> None:
    drawn = TASK.resampled_scores(PREDICTIONS, LABELS, np.random.default_rng(0), 200)
    assert set(drawn) == set(TASK.metrics)
    assert set(np.round(drawn["rouge_l"], 6)) == {0.0, 0.5, 1.0}
    assert drawn["rouge_l"].mean() == pytest.approx(0.5, abs=0.1)  # three standard errors of 200 draws


def test_details_count_texts_that_are_empty_or_not_ended() -> None:
    details = TASK.details(PREDICTIONS, LABELS)
    assert (details["references"], details["empty_texts"], details["cut_by_max_new_tokens"]) == (3, 1, 1)
    assert details["signatures"]["bleu"].startswith("nrefs:var")


def test_prediction_column_is_the_text() -> None:
    assert TASK.prediction_columns(PREDICTIONS) == [{"predicted_text": "a cat sat here"}, {"predicted_text": ""}]


def test_text_is_not_read_from_logits() -> None:
    with pytest.raises(NotImplementedError, match="predict_batch"):
        TASK.decode(np.zeros(1), None)
