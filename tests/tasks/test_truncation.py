"""What is told of prompts and completions that do not fit."""

from typing import Any

import pytest

from peft_bidora.data.examples import Examples
from peft_bidora.errors import RecipeError
from peft_bidora.tasks.truncation import cut_notes


def notes(tokenizer: Any, max_length: int, reserved: int, encoder_decoder: bool = False) -> list[str]:
    rows = [("say fox", "fox runs"), ("say fox and cat and fox", "cat"), ("say", "fox and cat and fox and cat")]
    examples = Examples([(prompt,) for prompt, _ in rows], [(text,) for _, text in rows], None, [{}] * 3, "rows",
                        [1, 2, 3], "row")  # fmt: skip
    return cut_notes("\n", reserved, encoder_decoder, tokenizer, max_length, "lower", examples)


def test_nothing_is_said_where_all_fits(make_tokenizer) -> None:
    assert notes(make_tokenizer(), 99, 9) == []
    assert notes(make_tokenizer(), 99, 0, encoder_decoder=True) == []


def test_cut_prompts_and_completions_are_counted(make_tokenizer) -> None:
    assert notes(make_tokenizer(), 8, 4) == [
        "lower split: 2 rows have a prompt that is cut on the left to fit into data.max_length=8 with room for"
        " generation.max_new_tokens=4.",
        "lower split: 1 row has a completion that is cut at the end to fit into data.max_length=8.",
    ]


def test_encoder_decoder_cuts_each_at_its_end(make_tokenizer) -> None:
    assert notes(make_tokenizer(), 7, 0, encoder_decoder=True) == [
        "lower split: 1 row has a prompt that is cut at the end to fit into data.max_length=7.",
        "lower split: 1 row has a completion that is cut at the end to fit into data.max_length=7.",
    ]


def test_new_tokens_that_leave_no_room_for_a_prompt_are_refused(make_tokenizer) -> None:
    with pytest.raises(RecipeError, match=r"generation.max_new_tokens=8 leaves no room.*8 tokens.*data.max_length"):
        notes(make_tokenizer(), 8, 8)
