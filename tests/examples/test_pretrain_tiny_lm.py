"""The pretraining script: what it learns, and that a recipe can go on from what it saves."""

import json
import math
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_bidora.tasks.base_model import load_config, load_tokenizer, position_limit, resolve_model

ROWS = [
    {"prompt": f"say {a} {b}", "references": [f"the {a} {b} is here", f"here is a {a} {b}"], "count": 3}
    for a in ("red", "blue", "green")
    for b in ("fox", "cat", "dog")
]
SMALL = ["--layers", "1", "--width", "16", "--heads", "2", "--vocabulary", "280", "--positions", "40", "--length", "12"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
    return path


def test_model_learns_and_is_usable_in_a_recipe(load_example, data, tmp_path, capsys) -> None:
    folder = tmp_path / "model"
    options = ["--data", str(data), "--output", str(folder), "--steps", "20", "--batch-size", "8", *SMALL]
    loss = load_example("pretrain_tiny_lm").main(options)
    assert loss < 0.9 * math.log(280)  # of a model that knows nothing
    assert str(folder) in capsys.readouterr().out
    config, tokenizer = load_config(resolve_model(str(folder))), load_tokenizer(str(folder))
    assert (config.n_layer, config.n_embd, position_limit(config)) == (1, 16, 40)
    assert tokenizer.eos_token_id == config.eos_token_id != tokenizer.pad_token_id
    text = "the r\u00e9d fox\n"
    assert AutoTokenizer.from_pretrained(folder).decode(tokenizer(text)["input_ids"]) == text
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0


def test_every_text_is_a_document_of_its_own(load_example, data) -> None:
    texts = list(load_example("pretrain_tiny_lm").read_texts(data, None))
    assert texts[:3] == ["say red fox", "the red fox is here", "here is a red fox"]
    assert len(texts) == 27
    assert list(load_example("pretrain_tiny_lm").read_texts(data, ["prompt"]))[:2] == ["say red fox", "say red cat"]


def test_blocks_hold_the_texts_with_the_end_of_text_between(load_example) -> None:
    script = load_example("pretrain_tiny_lm")
    texts = ["say fox", "say cat", "say"]
    tokenizer = script.train_tokenizer(texts, 280)
    blocks = script.pack(tokenizer, texts, 3)
    stream = tokenizer.decode([token for block in blocks for token in block["input_ids"]])
    assert set(stream.split("<|endoftext|>")) <= {*texts, ""} | {text[:end] for text in texts for end in range(9)}
    assert all(block["labels"] == block["input_ids"] for block in blocks)
    assert {len(block["input_ids"]) for block in blocks} == {3}


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--width", "30", "--heads", "4"], "no multiple of --heads"), (["--length", "99", "--positions", "9"], "--posi")],
)
def test_options_that_do_not_fit_are_refused(options, words, load_example, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        load_example("pretrain_tiny_lm").parse(["--data", "x", "--output", "y", *options])
    assert words in capsys.readouterr().err


def test_too_little_text_is_an_error(load_example) -> None:
    script = load_example("pretrain_tiny_lm")
    with pytest.raises(SystemExit, match=r"2 tokens; a block needs 9\. Lower --length"):
        script.pack(script.train_tokenizer(["a"], 280), ["a"], 9)
