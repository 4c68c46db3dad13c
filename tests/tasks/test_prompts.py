"""How the rows of text generation are read, spread over references and gathered by prompt."""

from typing import Any

import pytest

from peft_bidora.data.columns import columns_of_other, resolve_columns
from peft_bidora.data.examples import Examples, read_examples
from peft_bidora.data.table import table_of_rows
from peft_bidora.errors import DataError
from peft_bidora.tasks.prompts import (
    one_row_a_prompt,
    one_row_a_reference,
    prompt_layout,
    read_references,
    split_messages,
)

ASK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who?"}]
ANSWER = {"role": "assistant", "content": "me"}


def examples(rows: list[dict[str, Any]], tokenizer: Any = None, **read: Any) -> Examples:
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    table = split_messages(table_of_rows("rows", columns, rows, None))
    layout = prompt_layout(tokenizer)
    found, _ = resolve_columns(table, None, None, None, layout)
    return read_examples(table, found, layout, **read)


@pytest.mark.parametrize(
    "row",
    [
        {"meaning_representation": "who?", "reference": "me"},
        {"meaning_representation": "who?", "references": ["me"]},
        {"prompt": "who?", "completion": "me"},
    ],
)
def test_columns_are_known_by_their_names(row: dict[str, Any]) -> None:
    found = examples([row])
    assert found.texts == [("who?",)]
    assert found.labels == [("me",)]


def test_test_file_may_call_its_references_by_the_other_name() -> None:
    layout = prompt_layout(None)
    train = table_of_rows("train", ("prompt", "reference"), [{"prompt": "a", "reference": "b"}], None)
    test = table_of_rows("test", ("prompt", "references"), [{"prompt": "a", "references": ["b", "c"]}], None)
    columns, _ = resolve_columns(train, None, None, None, layout)
    found = read_examples(test, columns_of_other(test, columns, layout), layout)
    assert found.labels == [("b", "c")]


def test_last_message_of_the_assistant_is_the_completion(make_tokenizer, chat_template) -> None:
    found = examples([{"messages": [*ASK, ANSWER]}], make_tokenizer(chat_template))
    assert found.texts == [((("system", "be brief"), ("user", "who?")),)]
    assert found.labels == [("me",)]


def test_messages_without_an_answer_are_rows_without_labels(make_tokenizer, chat_template) -> None:
    found = examples([{"messages": ASK}], make_tokenizer(chat_template), require_labels=False)
    assert found.texts == [((("system", "be brief"), ("user", "who?")),)]
    assert found.labels is None


def test_prompt_and_completion_may_be_messages(make_tokenizer, chat_template) -> None:
    found = examples([{"prompt": ASK, "completion": [ANSWER]}], make_tokenizer(chat_template))
    assert found.texts == [((("system", "be brief"), ("user", "who?")),)]
    assert found.labels == [("me",)]


FAULTS = {
    "nothing to write": ({"prompt": "a", "completion": ""}, "an empty reference in 'completion'"),
    "no list of texts": ({"prompt": "a", "completion": ["b", 1]}, "a number in 'completion'"),
    "an empty list": ({"prompt": "a", "completion": []}, "an empty list in 'completion'"),
    "a number": ({"prompt": "a", "completion": 3}, "a number in 'completion'"),
    "unanswered": ({"messages": ASK}, r"end with one of the assistant"),
    "no role": ({"messages": [{"content": "a"}, ANSWER]}, "a message in 'messages' that is not whole"),
    "no object": ({"messages": ["a", ANSWER]}, "a string for a message in 'messages'"),
    "no message": ({"messages": []}, "no message in 'messages'"),
    "answer alone": ({"messages": [ANSWER]}, "nothing to answer in 'messages'"),
    "prompt with an answer": ({"prompt": [*ASK, ANSWER], "completion": "a"}, "nothing to answer in 'prompt'"),
    "tools": ({"messages": [{**ASK[1], "tool_calls": [1]}, ANSWER]}, "messages with 'tool_calls'"),
    "user's completion": ({"prompt": "a", "completion": ASK}, "other messages than one of the assistant"),
    "broken completion": ({"prompt": "a", "completion": [{"role": "assistant"}]}, "that is not whole"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_a_row_is_named_with_its_line(name: str, make_tokenizer, chat_template) -> None:
    row, words = FAULTS[name]
    good = {key: [*ASK, ANSWER] if key == "messages" else "fine" for key in row}
    with pytest.raises(DataError, match=rf"1 row has .*{words}.*\(row 2\)" if "end with" not in words else words):
        examples([good, row], make_tokenizer(chat_template))


def test_messages_need_a_chat_template(make_tokenizer) -> None:
    with pytest.raises(DataError, match=r"2 rows have messages in 'messages'.*no chat template.*instruct model"):
        examples([{"messages": [*ASK, ANSWER]}] * 2, make_tokenizer())


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses .*roles must alternate"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}", "anew"),
    ],
)
def test_template_that_cannot_write_the_rows_is_a_fault(template: str, words: str, make_tokenizer) -> None:
    with pytest.raises(DataError, match=words):
        examples([{"messages": [*ASK, ANSWER]}], make_tokenizer(template))


def test_unlabelled_chat_that_the_template_refuses_is_a_fault_of_its_row(make_tokenizer) -> None:
    tokenizer = make_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"refuses .*roles must alternate.*row 1"):
        examples([{"messages": ASK}], tokenizer, require_labels=False)


def test_chat_is_the_whole_of_a_prompt(make_tokenizer, chat_template) -> None:
    rows = [{"prompt": ASK, "more": "text", "completion": "me"}]
    table = table_of_rows("rows", ("prompt", "more", "completion"), rows, None)
    layout = prompt_layout(make_tokenizer(chat_template))
    columns, _ = resolve_columns(table, ["prompt", "more"], None, None, layout)
    with pytest.raises(DataError, match="messages beside another text"):
        read_examples(table, columns, layout)


def test_null_keys_of_a_message_count_as_absent() -> None:
    assert read_references([{**ANSWER, "name": None}], "completion") == ("me",)


def test_each_reference_is_learned_as_a_row_of_its_own() -> None:
    found = one_row_a_reference(
        examples([{"prompt": "a", "completion": ["b", "c"]}, {"prompt": "d", "completion": "e"}])
    )
    assert found.texts == [("a",), ("a",), ("d",)]
    assert found.labels == [("b",), ("c",), ("e",)]
    assert found.lines == [1, 1, 2]


def test_rows_of_one_prompt_are_scored_once_against_all_references() -> None:
    rows = [("a", "b"), ("d", "e"), ("a ", ["c", "b"])]
    found = one_row_a_prompt(examples([{"prompt": prompt, "completion": text} for prompt, text in rows]))
    assert found.texts == [("a",), ("d",)]
    assert found.labels == [("b", "c"), ("e",)]
    assert found.rows == [{"prompt": "a", "completion": "b"}, {"prompt": "d", "completion": "e"}]


def test_unlabelled_rows_are_left_as_they_are() -> None:
    rows = [{"prompt": "a"}, {"prompt": "a"}]
    assert len(one_row_a_prompt(examples(rows, require_labels=False))) == 2
