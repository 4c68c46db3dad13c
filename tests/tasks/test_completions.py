"""Token ids and labels of prompts with their completions."""

from typing import Any

import pytest

from peft_bidora.data.examples import Examples
from peft_bidora.errors import ModelError
from peft_bidora.tasks.completions import (
    IGNORED,
    Pieces,
    encode_causal,
    encode_pairs,
    end_of_text,
    fit_causal,
    learned_separator,
    pad_right,
    prompt_reading,
)

END, START = 0, 2


def examples(*rows: tuple[Any, Any]) -> Examples:
    labels = [references for _, references in rows]
    return Examples(
        texts=[prompt if isinstance(prompt, tuple) else (prompt,) for prompt, _ in rows],
        labels=None if None in labels else labels,
        groups=None,
        rows=[{} for _ in rows],
        source="rows",
        lines=list(range(1, len(rows) + 1)),
        unit="row",
    )


def encoded(tokenizer: Any, rows: Examples, length: int = 99, reserved: int = 0) -> list[tuple[str, str]]:
    """The text of what is masked and of what is learned."""
    columns = encode_causal(rows, tokenizer, learned_separator(rows), length, reserved)
    texts = []
    for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        border = labels.index(next(label for label in labels if label != IGNORED))
        assert labels == [IGNORED] * border + ids[border:]
        texts.append((tokenizer.decode(ids[:border]), tokenizer.decode(ids[border:])))
    return texts


def test_completion_and_end_of_text_are_learned_and_the_prompt_masked(make_tokenizer) -> None:
    assert encoded(make_tokenizer(), examples(("say fox", ("fox runs",)))) == [("say fox\n", "fox runs<end>")]


def test_first_of_several_references_is_learned(make_tokenizer) -> None:
    assert encoded(make_tokenizer(), examples(("say", ("fox", "cat")))) == [("say\n", "fox<end>")]


@pytest.mark.parametrize("rows", [[("say ", "fox"), ("now\n", "cat")], [("say", " fox"), ("now:", "\ncat")]])
def test_nothing_stands_between_where_the_rows_have_white_space(rows, make_tokenizer) -> None:
    found = encoded(make_tokenizer(), examples(*((prompt, (text,)) for prompt, text in rows)))
    assert found == [(prompt, f"{text}<end>") for prompt, text in rows]


def test_newline_stands_between_where_only_some_rows_have_white_space(make_tokenizer) -> None:
    found = encoded(make_tokenizer(), examples(("say ", ("fox",)), ("now", (" cat",))))
    assert found == [("say \n", "fox<end>"), ("now\n", " cat<end>")]


def test_two_texts_are_a_prompt_of_two_lines(make_tokenizer) -> None:
    assert encoded(make_tokenizer(), examples((("say", "fox"), ("cat",)))) == [("say\nfox\n", "cat<end>")]


def test_tokenizer_that_drops_the_newline_marks_the_border_by_its_end_of_text(make_tokenizer) -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    assert encoded(tokenizer, examples(("say", ("fox",)))) == [("say<end>", "fox<end>")]


def test_prompt_begins_as_the_tokenizer_begins_and_does_not_end(make_tokenizer) -> None:
    tokenizer = make_tokenizer(start=True)
    assert encoded(tokenizer, examples(("say", ("fox",)))) == [("<start>say\n", "fox<end>")]
    assert encoded(tokenizer, examples(("say fox now", ("cat",))), 6)[0][0].startswith("<start>")


def test_chat_is_written_by_its_template_alone(make_tokenizer, chat_template) -> None:
    tokenizer = make_tokenizer(chat_template, start=True)
    found = encoded(tokenizer, examples(((((("user", "say"),)),), ("fox",))))
    assert found == [("<user>say\n<assistant>", "fox<end>")]


@pytest.mark.parametrize("prompt", ["say fox", ("say fox", "cat"), ((("user", "say fox"),),)])
@pytest.mark.parametrize("start", [False, True])  # with a start, it puts an end behind every text too
@pytest.mark.parametrize("drops_newlines", [False, True])
@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_reading_lines_give_the_ids_that_the_model_was_trained_on(
    prompt: Any, start: bool, drops_newlines: bool, encoder_decoder: bool, make_tokenizer, chat_template
) -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer(chat_template, start=start)
    if drops_newlines:
        tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    rows = examples((prompt, None))
    expected = (encode_pairs(rows, tokenizer, 99) if encoder_decoder else encode_causal(rows, tokenizer, "\n", 99, 0))[
        "input_ids"
    ][0]
    line = prompt_reading(rows.texts[0], tokenizer, "" if encoder_decoder else "\n", encoder_decoder)
    names = {"tokenizer": tokenizer}
    texts = iter(["say fox", "cat"])
    while "..." in line:
        line = line.replace("...", next(texts), 1)
    exec(line, names)
    assert names["inputs"]["input_ids"][0].tolist() == expected


def test_rows_without_references_are_prompts_alone(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    columns = encode_causal(examples(("say", None)), tokenizer, "\n", 99, 0)
    assert columns.keys() == {"input_ids", "attention_mask"}
    assert tokenizer.decode(columns["input_ids"][0]) == "say\n"


@pytest.mark.parametrize(
    ("length", "reserved", "prompt", "completion"),
    [
        (9, 0, [9, 1, 2, 3, 4], [5, 6, 7]),
        (8, 3, [9, 1, 2, 3, 4], [5, 6, 7]),
        (7, 0, [9, 2, 3, 4], [5, 6, 7]),  # the prompt loses its left, not what every text begins with
        (8, 5, [9, 3, 4], [5, 6, 7]),  # as where five tokens are generated
        (4, 0, [9], [5, 6, 7]),
        (3, 0, [9], [5, 6]),  # a completion that is too long alone is cut, and does not end
        (3, 2, [9], [5, 6]),
    ],
)
def test_prompt_is_cut_on_the_left_and_the_completion_only_if_it_is_too_long_alone(
    length: int, reserved: int, prompt: list[int], completion: list[int]
) -> None:
    assert fit_causal(Pieces([9], [1, 2, 3, 4], [5, 6, 7]), length, reserved) == (prompt, completion)


def test_prompt_is_cut_alike_with_and_without_its_reference() -> None:
    pieces = Pieces([], [1, 2, 3, 4], [5, 6])
    alone, _ = fit_causal(Pieces([], pieces.prompt, []), 5, 3)
    assert fit_causal(pieces, 5, 3)[0] == alone == [3, 4]


def test_encoder_decoder_learns_the_completion_with_its_end(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    columns = encode_pairs(examples(("say fox", ("fox runs",))), tokenizer, 99)
    assert tokenizer.decode(columns["input_ids"][0]) == "say fox"
    assert tokenizer.decode(columns["labels"][0]) == "fox runs<end>"


def test_encoder_decoder_keeps_the_special_tokens_of_its_tokenizer(make_tokenizer) -> None:
    tokenizer = make_tokenizer(start=True)
    columns = encode_pairs(examples(("say", ("fox",))), tokenizer, 99)
    assert tokenizer.decode(columns["input_ids"][0]) == "<start>say<end>"
    assert tokenizer.decode(columns["labels"][0]) == "<start>fox<end>"


@pytest.mark.parametrize("start", [True, False])
def test_cut_completion_of_an_encoder_decoder_ends(start: bool, make_tokenizer) -> None:
    columns = encode_pairs(examples(("say fox", ("fox runs now and then",))), make_tokenizer(start=start), 4)
    assert len(columns["labels"][0]) == 4
    assert columns["labels"][0][-1] == END
    assert len(columns["input_ids"][0]) <= 4


def test_batches_are_padded_on_the_right_whatever_the_tokenizer_prefers(make_tokenizer) -> None:
    tokenizer = make_tokenizer(padding_side="left")
    rows = [
        {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [IGNORED, 6], "more": 1},
        {"input_ids": [7], "attention_mask": [1], "labels": [7]},
    ]
    batch = pad_right(tokenizer)(rows)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6], [7, 1]],
        "attention_mask": [[1, 1], [1, 0]],
        "labels": [[IGNORED, 6], [7, IGNORED]],
    }


def test_tokenizer_without_an_end_of_text_token_is_refused(make_tokenizer) -> None:
    with pytest.raises(ModelError, match=r"no end-of-text token.*eos_token"):
        end_of_text(make_tokenizer(eos_token=None))
