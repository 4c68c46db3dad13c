"""Read the messages of a chat, and write them as the text that the tokenizer's chat template makes of them."""

from typing import Any

from peft_bidora.data.faults import Fault, is_empty, kind_of
from peft_bidora.data.fields import SURROGATE

Messages = tuple[tuple[str, str], ...]  # role and content of each
ASSISTANT = "assistant"


def read_messages(value: list[Any], column: str) -> Messages | Fault:
    """Return the messages of a list of {"role", "content"}; a key whose value is null counts as absent."""
    messages = []
    for item in value:
        if not isinstance(item, dict):
            return Fault(f"{kind_of(item)} for a message in {column!r}", "a message has a role and a content. Convert.")
        given = {name: field for name, field in item.items() if field is not None}
        if extra := sorted(given.keys() - {"role", "content"}):
            names = ", ".join(map(repr, extra))
            return Fault(f"messages with {names} in {column!r}", "only role and content are read. Remove the others.")
        role, content = given.get("role"), given.get("content")
        if not isinstance(role, str) or not isinstance(content, str) or is_empty(role) or is_empty(content):
            return Fault(f"a message in {column!r} that is not whole", "its role and its content are texts. Fill them.")
        if SURROGATE.search(role + content):
            return Fault(f"half a surrogate pair in {column!r}", "that is no character. Write these messages again.")
        messages.append((role, content))
    if not messages:
        return Fault(f"no message in {column!r}", "a chat has at least one. Remove or fill them.")
    return tuple(messages)


def last_answer(value: object) -> str | None:
    """Return the content of the last message if it is the assistant's."""
    last = value[-1] if isinstance(value, list) and value else None
    return last.get("content") if isinstance(last, dict) and last.get("role") == ASSISTANT else None


def render(tokenizer: Any, prompt: Messages, answer: str | None = None) -> str:
    """Return the text of a chat: with an answer the whole of it, else up to where the answer would begin.

    Args:
        tokenizer: has a chat template.
        prompt: the messages before the answer.
        answer: the assistant's.
    """
    messages = [{"role": role, "content": content} for role, content in prompt]
    if answer is not None:
        messages.append({"role": ASSISTANT, "content": answer})
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
    return text


def rendered_answer(tokenizer: Any, prompt: Messages, answer: str) -> str:
    """Return what follows the rendered prompt: the answer and the end of its turn, up to the end-of-text token.

    Args:
        tokenizer: has a chat template.
        prompt: the messages before the answer.
        answer: the assistant's.
    """
    text = render(tokenizer, prompt, answer)[len(render(tokenizer, prompt)) :]
    end = tokenizer.eos_token
    # Templates put a line break behind the turn, which no model has to learn.
    return text[: text.rindex(end)] if end in text else text


def refused(tokenizer: Any, prompt: Messages, answer: str | None = None) -> Fault | None:
    """Return why the chat template does not write a chat, None where it does.

    Args:
        tokenizer: has a chat template.
        prompt: the messages before the answer.
        answer: the assistant's; None for the prompt alone.
    """
    try:
        render(tokenizer, prompt, answer)
    except Exception as error:  # a template raises whatever its author chose
        reason = " ".join(str(error).split())[:200]
        return Fault(
            f"messages that the tokenizer's chat template refuses ({reason})",
            "Change them, or give prompt and completion.",
        )
    return None


def check_rendering(tokenizer: Any, prompt: Messages, answer: str) -> Fault | None:
    """Return what is wrong with the chat template's writing of a chat."""
    if fault := refused(tokenizer, prompt, answer):
        return fault
    if not render(tokenizer, prompt, answer).startswith(render(tokenizer, prompt)):
        return Fault(
            "messages that the tokenizer's chat template writes anew once they are answered",
            "the text of a prompt must be the beginning of the whole. Give prompt and completion as texts.",
        )
    return None
