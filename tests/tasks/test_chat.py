"""Chats as the text that the tokenizer's template makes of them."""

import pytest

from peft_bidora.data.faults import Fault
from peft_bidora.tasks.chat import check_rendering, last_answer, read_messages, render, rendered_answer

PROMPT = (("user", "who?"),)


def test_prompt_and_answer_make_up_the_whole_chat(make_tokenizer, chat_template) -> None:
    tokenizer = make_tokenizer(chat_template)
    assert render(tokenizer, PROMPT) == "<user>who?\n<assistant>"
    assert render(tokenizer, PROMPT, "me") == "<user>who?\n<assistant>me<end>\n"
    assert check_rendering(tokenizer, PROMPT, "me") is None


def test_rendered_answer_stops_before_the_end_of_text(make_tokenizer, chat_template) -> None:
    assert rendered_answer(make_tokenizer(chat_template), PROMPT, "me") == "me"


def test_mark_of_the_turns_end_is_part_of_the_answer(make_tokenizer, chat_template) -> None:
    tokenizer = make_tokenizer(chat_template.replace("{{ eos_token }}", "<over>"))
    assert rendered_answer(tokenizer, PROMPT, "me") == "me<over>\n"


def test_only_the_assistant_answers() -> None:
    assert last_answer([{"role": "user", "content": "a"}]) is None
    assert last_answer([]) is None
    assert last_answer("text") is None
    assert last_answer([{"role": "assistant", "content": "a"}]) == "a"


@pytest.mark.parametrize("message", [{"role": "user", "content": "a\ud800"}, {"role": "u\ud800", "content": "a"}])
def test_message_with_half_a_surrogate_pair_is_at_fault(message: dict[str, str]) -> None:
    fault = read_messages([message], "messages")
    assert isinstance(fault, Fault)
    assert fault.what == "half a surrogate pair in 'messages'"
