"""Read the rows of text generation: a prompt, as text or as messages, and the references that answer it."""

from dataclasses import replace
from functools import partial
from typing import Any

from peft_bidora.data.columns import Layout
from peft_bidora.data.examples import Examples
from peft_bidora.data.faults import Fault, emptiness, is_empty, kind_of
from peft_bidora.data.fields import read_text
from peft_bidora.data.repeats import text_keys
from peft_bidora.data.table import Table
from peft_bidora.tasks.chat import ASSISTANT, Messages, check_rendering, last_answer, read_messages, refused

MESSAGES, COMPLETION = "messages", "completion"
PROMPT_NAMES = (
    "prompt", "meaning_representation", MESSAGES, "instruction", "input", "source", "question", "document", "article",
    "dialogue",
)  # fmt: skip
COMPLETION_NAMES = (
    COMPLETION, "reference", "references", "response", "output", "target", "answer", "summary", "highlights",
)  # fmt: skip
NO_TEMPLATE = (
    "the tokenizer has no chat template to write them as text. Name an instruct model, or give prompt and completion."
)


def prompt_layout(tokenizer: Any) -> Layout:
    """Return how rows are read: a prompt is a text, or the messages before the answer; a label is the references.

    Args:
        tokenizer: writes messages as text; None where it could not be loaded.
    """
    return Layout(
        wanted="a prompt, as text or messages,",
        text=partial(_read_prompt, tokenizer),
        label=read_references,
        text_names=PROMPT_NAMES,
        pair_names=(),
        label_names=COMPLETION_NAMES,
        label_aliases=("reference", "references"),
        check=None if tokenizer is None else partial(_check_chat, tokenizer),
    )


def split_messages(table: Table) -> Table:
    """Return a table of chats with the assistant's last message as its `completion`; other tables as they are."""
    if MESSAGES not in table.columns or COMPLETION in table.columns:
        return table
    rows = [{**row, COMPLETION: last_answer(row.get(MESSAGES))} for row in table.rows]
    return replace(table, columns=(*table.columns, COMPLETION), rows=rows)


def read_references(value: object, column: str) -> tuple[str, ...] | Fault:
    """Return the references of a row: of a text one, of a list of texts all, of a single message its content."""
    if is_empty(value):
        return Fault(
            f"{emptiness(value)} reference in {column!r}",
            "every row needs what is to be written; messages end with one of the assistant. Remove or fill them.",
        )
    if isinstance(value, str):
        return _all_texts((value,), column)
    if not isinstance(value, list) or not value:
        what = "an empty list" if isinstance(value, list) else kind_of(value)
        return Fault(f"{what} in {column!r}", "references are a text or a list of texts. Convert them.")
    if isinstance(value[0], dict):
        messages = read_messages(value, column)
        if isinstance(messages, Fault):
            return messages
        if len(messages) > 1 or messages[0][0] != ASSISTANT:
            return Fault(f"other messages than one of the assistant in {column!r}", "put them into the prompt.")
        return (messages[0][1],)
    return _all_texts(value, column)


def one_row_a_reference(examples: Examples) -> Examples:
    """Return the examples with a row for each reference, to learn from all of them."""
    labels = examples.required_labels()
    taken = examples.take(row for row, references in enumerate(labels) for _ in references)
    return replace(taken, labels=[(reference,) for references in labels for reference in references])


def one_row_a_prompt(examples: Examples) -> Examples:
    """Return the first row of each prompt with the references of all its rows, to score a prompt once."""
    if examples.labels is None:
        return examples
    references: dict[Any, dict[str, None]] = {}
    first: dict[Any, int] = {}
    for row, (key, label) in enumerate(zip(text_keys(examples), examples.labels, strict=True)):
        first.setdefault(key, row)
        references.setdefault(key, {}).update(dict.fromkeys(label))
    return replace(examples.take(first.values()), labels=[tuple(found) for found in references.values()])


def _read_prompt(tokenizer: Any, value: object, column: str) -> str | Messages | Fault:
    if not isinstance(value, list):
        return read_text(value, column)
    messages = read_messages(value, column)
    if isinstance(messages, Fault):
        return messages
    if tokenizer is not None and getattr(tokenizer, "chat_template", None) is None:
        return Fault(f"messages in {column!r}", NO_TEMPLATE)
    prompt = messages[:-1] if messages[-1][0] == ASSISTANT else messages
    if not prompt or (column != MESSAGES and len(prompt) < len(messages)):
        return Fault(f"nothing to answer in {column!r}", "the messages of a prompt end with the user's. Add it.")
    return prompt if tokenizer is None else refused(tokenizer, prompt) or prompt


def _check_chat(tokenizer: Any, texts: tuple[Any, ...], references: tuple[str, ...]) -> Fault | None:
    chats = [text for text in texts if isinstance(text, tuple)]
    if chats and len(texts) > 1:
        return Fault("messages beside another text", "a chat is all of a prompt. Name its column alone as data.text.")
    return check_rendering(tokenizer, chats[0], references[0]) if chats else None


def _all_texts(values: Any, column: str) -> tuple[str, ...] | Fault:
    texts = [read_text(value, column) for value in values]
    fault = next((text for text in texts if isinstance(text, Fault)), None)
    return fault or tuple(text for text in texts if not isinstance(text, Fault))
