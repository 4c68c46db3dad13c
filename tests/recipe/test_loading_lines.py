"""The Python that a run prints: it loads the result without this package, whatever the base model and the path."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
)

from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.run import run

Make = Callable[..., Path]


def assert_lines_load(metrics: dict[str, Any], output: Path) -> None:
    """Read the test rows in one batch by the printed model and compare with what the run predicted."""
    stock: dict[str, Any] = {}
    exec("\n".join(metrics["loading_lines"]), stock)
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    batch = stock["tokenizer"]([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = stock["model"].eval()(**batch).logits.softmax(-1)
    expected = torch.tensor([list(row["probabilities"].values()) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "bidora", "full"])
def test_base_with_a_head_of_other_classes(method: str, make_recipe: Make, model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "headed")
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5).save_pretrained(folder)
    recipe = load_recipe(make_recipe(model=str(folder), method=method))
    assert_lines_load(run(recipe), recipe.output)


@pytest.mark.parametrize("method", ["lora", "bidora", "full"])
def test_decoder_whose_padding_token_the_tokenizer_alone_knows(
    method: str, make_recipe: Make, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "decoder"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(folder)
    GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        folder
    )
    recipe = load_recipe(make_recipe(model=str(folder), method=method))
    assert_lines_load(run(recipe), recipe.output)


@pytest.mark.parametrize("name", ['a "b" c', "it's", "back\\slash", "été 🙂"])
def test_path_with_marks(name: str, make_recipe: Make, tmp_path: Path) -> None:
    recipe = load_recipe(make_recipe(method="lora", output=str(tmp_path / name)))
    assert_lines_load(run(recipe), recipe.output)
