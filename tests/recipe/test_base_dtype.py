"""Base weights in bfloat16 by a recipe: loaded without a copy, trained, read again and merged alike."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import rows
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
    T5ForSequenceClassification,
)

from peft_bidora.adapter.held import held_weights
from peft_bidora.data.source import read_table
from peft_bidora.errors import BiDoRAError
from peft_bidora.recipe import run as run_module
from peft_bidora.recipe.capabilities import capabilities
from peft_bidora.recipe.finished import load_base, load_trained, predict_with, read_run, tabulated
from peft_bidora.recipe.lane_settings import load_settings
from peft_bidora.recipe.lanes import run_lanes
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.loading import load_base_model, saved_bytes
from peft_bidora.recipe.merge import merge
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import load_model, run

pytestmark = pytest.mark.filterwarnings("ignore:Merge lora module to", "ignore:.*is_gradient_checkpointing")
Make = Callable[..., Path]
HALF: dict[str, Any] = {"precision": "bfloat16", "base_dtype": "bfloat16"}
TAGGED: dict[str, Any] = {"data__text": None, "data__label": None}
TAGS = [
    [{"tokens": row["text"].split(), "tags": ["B-WORD", *["O"] * (len(row["text"].split()) - 1)]} for row in part]
    for part in (rows(40), rows(12, 100))
]


@pytest.fixture
def stored(model_folder: Path, tmp_path: Path) -> Callable[[torch.dtype], Path]:
    def store(dtype: torch.dtype) -> Path:
        folder = tmp_path / str(dtype)
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
        BertModel.from_pretrained(model_folder, dtype=dtype).save_pretrained(folder)
        return folder

    return store


def probabilities(output: Path) -> torch.Tensor:
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    return torch.tensor([list(row["probabilities"].values()) for row in lines])


@pytest.mark.parametrize("method", ["lora", "bidora"])
def test_run_is_read_again_and_merged_as_it_was_trained(method: str, make_recipe: Make, tmp_path: Path) -> None:
    recipe = load_recipe(make_recipe(method=method, **HALF))
    metrics = run(recipe)
    expected = probabilities(recipe.output)
    finished = read_run(recipe.output)
    table = tabulated(finished, read_table(recipe.output / "predictions.jsonl"))
    found = finished.task.prediction_columns(predict_with(finished, load_trained(finished), table))
    again = torch.tensor([list(each["probabilities"].values()) for each in found])
    torch.testing.assert_close(again, expected.to(again), rtol=0, atol=1e-6)  # as many digits are written
    assert merge(recipe.output, tmp_path / "merged").difference < 1e-4
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert {each.dtype for each in merged.parameters()} == {torch.float32}
    stock: dict[str, Any] = {}
    exec("\n".join(metrics["loading_lines"]), stock)
    texts = [json.loads(line)["text"] for line in (recipe.output / "predictions.jsonl").read_text().splitlines()]
    batch = stock["tokenizer"](texts, padding=True, return_tensors="pt")
    for model in (merged, stock["model"].eval()):
        # Passes in float32 against passes in bfloat16.
        torch.testing.assert_close(model(**batch).logits.softmax(-1), expected, rtol=0, atol=1e-2)


def test_merged_weights_are_made_of_what_was_trained_over(make_recipe: Make, model_folder: Path) -> None:
    recipe = load_recipe(make_recipe(method="lora", **HALF))
    run(recipe)
    base = load_base(read_run(recipe.output), unpacked=True)
    weights = load_file(model_folder / "model.safetensors")
    name = "encoder.layer.1.attention.self.query.weight"
    assert torch.equal(base.get_parameter(f"bert.{name}"), weights[name].bfloat16().float())
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(base.get_parameter(f"bert.{name}"), weights[name])


@pytest.fixture
def gemma(model_folder: Path, tmp_path: Path) -> Path:
    """A decoder stored in bfloat16 that has a number beside its weights, the root of its width: no square here."""
    folder = tmp_path / "gemma"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(
        vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=12, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        **shape,
    )  # fmt: skip
    Gemma2Model(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "gemma", "t5"])
def test_run_over_a_model_stored_so_is_that_over_float32_to_the_bit(
    kind: str, make_recipe: Make, stored: Callable[[torch.dtype], Path], gemma: Path, model_folder: Path, tmp_path: Path
) -> None:
    source = {"bert": stored(torch.bfloat16), "gemma": gemma, "t5": tmp_path / "t5"}[kind]
    if kind == "t5":
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(source)
        T5EncoderModel(
            T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0)
        ).bfloat16().save_pretrained(source)
    task = {"task": "token-classification", **TAGGED} if kind == "t5" else {}
    path = make_recipe(*(TAGS if kind == "t5" else ()), model=str(source), adapter__dropout=0.1, **{**HALF, **task})
    outputs = []
    for dtype in ("float32", "bfloat16"):
        recipe = load_recipe(path, [f"base_dtype={dtype}", f"output={tmp_path / dtype}"])
        run(recipe)
        outputs.append(load_file(recipe.output / "adapter" / "adapter_model.safetensors"))
        merge(recipe.output, tmp_path / f"merged-{dtype}")
        outputs.append(load_file(tmp_path / f"merged-{dtype}" / "model.safetensors"))
    for found, expected in ((outputs[2], outputs[0]), (outputs[3], outputs[1])):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_linear_layers_are_held_so_and_the_file_is_let_go(
    dtype: torch.dtype, make_recipe: Make, stored: Callable[[torch.dtype], Path]
) -> None:
    source = stored(dtype)
    model = load_model(prepare(load_recipe(make_recipe(model=str(source), **HALF))))
    held = {each for each in model.parameters() if each.dtype == torch.bfloat16}
    assert held == set(held_weights(model))
    assert len(held) == 2 * 6 + 1  # of each layer, and the pooler
    assert {each.dtype for each in model.parameters() if each not in held} == {torch.float32}
    assert str(source) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_file_is_let_go_where_linear_layers_are_packed(
    make_recipe: Make, stored: Callable[[torch.dtype], Path]
) -> None:
    pytest.importorskip("bitsandbytes")
    source = stored(torch.float32)
    prepared = prepare(load_recipe(make_recipe(model=str(source), quantization="4bit")))
    model = load_base_model(prepared.recipe, prepared.kind, prepared.rows.task, str(source), prepared.tokenizer)
    assert str(source) not in Path("/proc/self/maps").read_text()
    expected = load_file(source / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(model.get_input_embeddings().weight, expected)


def test_weights_that_are_stored_in_bfloat16_are_loaded_in_float32_if_not_told_otherwise(
    make_recipe: Make, stored: Callable[[torch.dtype], Path]
) -> None:
    source = stored(torch.bfloat16)
    prepared = prepare(load_recipe(make_recipe(model=str(source), precision="bfloat16")))
    model = load_base_model(prepared.recipe, prepared.kind, prepared.rows.task, str(source), prepared.tokenizer)
    assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_lanes_are_the_runs_alone(make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_recipe(search__hypergradient="finite-difference", **HALF)
    held = list[Any]()
    hold = run_module.hold_in_bfloat16
    monkeypatch.setattr(run_module, "hold_in_bfloat16", lambda model: (held.append(model), hold(model)))
    lanes = run_lanes(load_settings(path, [], ["method=lora,bidora"]), tmp_path / "run")
    assert held
    for lane in lanes:
        alone = load_recipe(path, [f"method={lane.setting.values['method']}", f"output={tmp_path / 'alone'}"])
        run(alone, overwrite=True)
        found, expected = (probabilities(folder) for folder in (lane.setting.recipe.output, alone.output))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # bfloat16


@pytest.mark.parametrize("hypergradient", ["finite-difference", "exact"])
def test_it_goes_with_bfloat16_passes(hypergradient: str, make_recipe: Make) -> None:
    path = make_recipe(search__hypergradient=hypergradient, precision="bfloat16")
    assert capabilities(prepare(load_recipe(path)))["base_dtype=bfloat16"] is None
    assert run(load_recipe(path, ["base_dtype=bfloat16"]))["method"] == "bidora"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "float32"}, "expected precision=bfloat16 beside it, got float32"),
        ({"method": "full"}, "holds frozen weights, and method=full trains them all"),
        ({"quantization": "4bit"}, "and quantization=4bit hold the same weights in two ways; expected one of them"),
        ({"base_dtype": "float16"}, "base_dtype"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes: dict[str, Any], message: str, make_recipe: Make) -> None:
    with pytest.raises(BiDoRAError, match=message):
        prepare(load_recipe(make_recipe(**{**HALF, **changes})))


def test_saved_memory_is_two_bytes_of_each_number_in_a_linear_layer(make_recipe: Make, model_folder: Path) -> None:
    recipe = load_recipe(make_recipe(**HALF))
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig.from_pretrained(model_folder))
        encoder_decoder = T5ForSequenceClassification(T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2))
    assert saved_bytes(recipe, model) == 2 * (2 * (4 * 16 * 16 + 2 * 16 * 24) + 16 * 16)  # two layers and the pooler
    # Attention of the encoder, that of the decoder twice, and what reads in the layers beside; what writes stays.
    assert saved_bytes(recipe, encoder_decoder) == 2 * (3 * 4 * 16 * 16 + 2 * 16 * 24)
    for other in ("float32", None):
        whole = recipe.model_copy(update={"base_dtype": other})
        assert saved_bytes(whole, model) == 0


def test_run_of_a_version_without_the_key_is_resumed(make_recipe: Make) -> None:
    path = make_recipe(method="lora")
    recipe = load_recipe(path)
    run(recipe)
    kept = recipe.output / "recipe.yaml"
    older = "".join(line for line in kept.read_text().splitlines(True) if "base_dtype" not in line)
    kept.write_text(older)
    said: list[str] = []
    run(recipe, resume=True, announce=said.append)
    assert "The run is finished already." in said
