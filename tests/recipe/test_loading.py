"""Base weights in few bits and activation checkpointing by a recipe: trained, resumed, read again and merged alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from peft_bidora.errors import BiDoRAError
from peft_bidora.recipe import loading
from peft_bidora.recipe.finished import load_trained, predict_with, read_run, tabulated
from peft_bidora.recipe.lane_settings import load_settings
from peft_bidora.recipe.lanes import run_lanes
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.merge import merge
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import make_trainer, run

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings(
    "ignore:MatMul8bitLt",  # it tells that it casts
    "ignore:Merge lora module to",  # peft tells that rounding follows
    "ignore:.*dequantiz",  # transformers tells that the model is in float32 then
)
Make = Callable[..., Path]
BITS = ("8bit", "4bit")


@pytest.fixture
def wide_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A model whose sides are multiples of the 64 numbers that share a scale; without dropout."""
    folder = shutil.copytree(model_folder, tmp_path / "wide")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    BertModel(BertConfig(vocab_size=vocabulary, max_position_embeddings=32, **shape, **still)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bits", BITS)
def test_linear_layers_are_packed_and_the_head_is_not(bits: str, make_recipe: Make, wide_folder: Path) -> None:
    recipe = load_recipe(make_recipe(model=str(wide_folder), quantization=bits))
    model = make_trainer(prepare(recipe)).model
    kinds = {name: type(parameter).__name__ for name, parameter in model.named_parameters()}
    packed = [name for name, kind in kinds.items() if kind in ("Int8Params", "Params4bit")]
    assert len(packed) == 2 * 6 + 1  # of each layer, and the pooler
    assert kinds["base_model.model.classifier.modules_to_save.default.weight"] == "Parameter"
    assert kinds["base_model.model.bert.embeddings.word_embeddings.weight"] == "Parameter"


def test_packed_weights_of_transposed_layers_are_counted(
    make_recipe: Make, make_language_model, tmp_path: Path
) -> None:
    recipe = load_recipe(make_recipe(quantization="8bit"))
    # Of each of 2 layers: 16 · 48 + 16 · 16 in attention, twice 16 · 64 beside it; the output stays in float32.
    assert loading.saved_bytes(recipe, make_language_model("gpt2")) == 3 * 2 * (16 * 64 + 2 * 16 * 64)


@pytest.mark.parametrize("method", ["lora", "bidora"])
@pytest.mark.parametrize("bits", BITS)
def test_run_is_read_by_its_printed_lines_and_merged_as_it_predicts(
    bits: str, method: str, make_recipe: Make, wide_folder: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(make_recipe(model=str(wide_folder), method=method, quantization=bits))
    metrics = run(recipe)
    rows = [json.loads(line) for line in (recipe.output / "predictions.jsonl").read_text().splitlines()]
    expected = torch.tensor([list(row["probabilities"].values()) for row in rows])
    stock: dict[str, Any] = {}
    exec("\n".join(metrics["loading_lines"]), stock)
    batch = stock["tokenizer"]([row["text"] for row in rows], padding=True, return_tensors="pt")
    # Stock, a processor may lay 4 bits out anew; and a layer of 8 bits rounds what it reads.
    assert_near(stock["model"].eval()(**batch).logits.softmax(-1), expected, 2e-4 if bits == "4bit" else 1e-2)
    finished = read_run(recipe.output)
    found = predict_with(finished, load_trained(finished), tabulated(finished, table_of(recipe.output)))
    assert_near(torch.tensor(probabilities(finished, found)), expected, 1e-6)
    merged = merge(recipe.output, tmp_path / "merged")
    assert merged.difference < 1e-4
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert not any("bit" in type(module).__name__ for module in plain.modules())
    assert_near(plain(**batch).logits.softmax(-1), expected, 1e-4 if bits == "4bit" else 1e-2)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.detach().to(expected), expected, rtol=0, atol=tolerance)


def table_of(output: Path) -> Any:
    from peft_bidora.data.source import read_table

    return read_table(output / "predictions.jsonl")


def probabilities(finished: Any, predictions: list[Any]) -> list[list[float]]:
    return [list(each["probabilities"].values()) for each in finished.task.prediction_columns(predictions)]


@pytest.mark.parametrize("bits", BITS)
def test_base_of_a_finished_run_is_packed_as_it_was_trained(bits: str, make_recipe: Make, wide_folder: Path) -> None:
    recipe = load_recipe(make_recipe(model=str(wide_folder), method="lora", quantization=bits))
    run(recipe)
    kinds = {type(module).__name__ for module in load_trained(read_run(recipe.output)).modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    unpacked = {type(module).__name__ for module in load_trained(read_run(recipe.output), unpacked=True).modules()}
    assert not unpacked & {"Linear8bitLt", "Linear4bit"}


def test_lanes_over_four_bits_are_the_runs_alone(make_recipe: Make, wide_folder: Path, tmp_path: Path) -> None:
    path = make_recipe(model=str(wide_folder), quantization="4bit", search__hypergradient="finite-difference")
    lanes = run_lanes(load_settings(path, [], ["method=lora,bidora"]), tmp_path / "run")
    for lane in lanes:
        alone = load_recipe(path, [f"method={lane.setting.values['method']}", f"output={tmp_path / 'alone'}"])
        run(alone, overwrite=True)
        found, expected = (read_rows(folder) for folder in (lane.setting.recipe.output, alone.output))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def read_rows(output: Path) -> torch.Tensor:
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    return torch.tensor([list(row["probabilities"].values()) for row in rows])


def test_activation_checkpointing_computes_twice_and_changes_nothing(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_recipe()  # with dropout: what is computed again sees the same masks
    outputs = []
    passes = {True: 0, False: 0}
    forward = torch.nn.functional.gelu
    for checkpointing in (True, False):

        def counted(*arguments: Any, on: bool = checkpointing, **options: Any) -> Any:
            passes[on] += torch.is_grad_enabled()
            return forward(*arguments, **options)

        monkeypatch.setattr(torch.nn.functional, "gelu", counted)
        output = tmp_path / f"checkpointing-{checkpointing}"
        run(load_recipe(path, [f"activation_checkpointing={str(checkpointing).lower()}", f"output={output}"]))
        outputs.append(read_rows(output))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)
    assert passes[True] > 1.5 * passes[False] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "full", "quantization": "4bit"}, "quantization=4bit freezes the weights, which method=full trains"),
        (
            {"search__hypergradient": "exact", "quantization": "8bit"},
            "quantization=8bit: products with packed weights cannot be differentiated twice",
        ),
        ({"quantization": "3bit"}, "quantization"),
    ],
)
def test_packed_weights_that_cannot_be_are_refused(changes: dict[str, Any], message: str, make_recipe: Make) -> None:
    with pytest.raises(BiDoRAError, match=message):
        prepare(load_recipe(make_recipe(**changes)))


def test_packed_weights_without_their_package_are_refused(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(BiDoRAError, match=r"pip install 'peft-bidora\[quantization\]'"):
        prepare(load_recipe(make_recipe(quantization="8bit")))


def test_model_without_checkpoints_is_told(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertForSequenceClassification

    monkeypatch.setattr(BertForSequenceClassification, "supports_gradient_checkpointing", False)
    with pytest.raises(
        BiDoRAError, match="activation_checkpointing: BertForSequenceClassification of transformers has"
    ):
        prepare(load_recipe(make_recipe(activation_checkpointing=True)))


def test_keys_stand_in_the_recipe_that_is_kept(make_recipe: Make, wide_folder: Path) -> None:
    recipe = load_recipe(
        make_recipe(model=str(wide_folder), method="lora", quantization="8bit", activation_checkpointing=True)
    )
    run(recipe)
    kept = yaml.safe_load((recipe.output / "recipe.yaml").read_text())
    assert (kept["quantization"], kept["activation_checkpointing"]) == ("8bit", True)
