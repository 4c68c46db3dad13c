"""Tell what of texts, or of prompts and completions, does not fit into a row."""

from typing import Any

from peft_bidora.data.examples import Examples
from peft_bidora.data.wording import rows_have
from peft_bidora.errors import RecipeError
from peft_bidora.tasks.completions import causal_pieces, encode_pairs, fit_causal
from peft_bidora.tasks.task import Task

UNCUT = 1_000_000  # tokens: longer than any row


def text_notes(task: Task, tokenizer: Any, max_length: int, name: str, examples: Examples) -> list[str]:
    """Return a sentence on the texts of a split that are cut, if there are any.

    Args:
        task: encodes texts.
        tokenizer: of the model.
        max_length: the most tokens of a row.
        name: of the split.
        examples: its rows.
    """
    encoded = (task.encode(chunk, tokenizer, UNCUT)["input_ids"] for chunk in examples.chunks())
    cut = sum(len(ids) > max_length for rows in encoded for ids in rows)
    told = f"{name} split: {rows_have(cut)} a text that is cut to fit into data.max_length={max_length}."
    return [told] if cut else []


def cut_notes(
    separator: str, reserved: int, encoder_decoder: bool, tokenizer: Any, max_length: int, name: str, examples: Examples
) -> list[str]:
    """Return a sentence each for the prompts and the completions of a split that are cut.

    Args:
        separator: between prompt and completion of a causal model.
        reserved: the tokens that its prompt leaves free for what is generated.
        encoder_decoder: whether prompt and completion have a row each.
        tokenizer: of the model.
        max_length: the most tokens of a row.
        name: of the split.
        examples: its rows.

    Raises:
        ModelError: the tokenizer has no end-of-text token.
        RecipeError: what is generated leaves no room for a prompt.
    """
    if max_length <= reserved:
        raise RecipeError(
            f"generation.max_new_tokens={reserved} leaves no room for a prompt within the {max_length} tokens of a row."
            " Lower it, or raise data.max_length if the model takes more."
        )
    if encoder_decoder:
        whole = encode_pairs(examples, tokenizer, UNCUT)
        prompts, completions = (
            sum(len(ids) > max_length for ids in whole.get(column, [])) for column in ("input_ids", "labels")
        )
    else:
        rows = causal_pieces(examples, tokenizer, separator)
        fitted = [fit_causal(row, max_length, reserved) for row in rows]
        pairs = list(zip(rows, fitted, strict=True))
        prompts = sum(len(prompt) < len(row.start) + len(row.prompt) for row, (prompt, _) in pairs)
        completions = sum(len(completion) < len(row.completion) for row, (_, completion) in pairs)
    beyond = f"data.max_length={max_length}"
    if reserved:
        beyond += f" with room for generation.max_new_tokens={reserved}"
    cuts = (
        ("prompt", prompts, "at the end" if encoder_decoder else "on the left", beyond),
        ("completion", completions, "at the end", f"data.max_length={max_length}"),
    )
    return [
        f"{name} split: {rows_have(count)} a {what} that is cut {where} to fit into {limit}."
        for what, count, where, limit in cuts
        if count
    ]
