"""What `check` says to go together does train, and what it says not to is refused before weights are loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from peft_bidora.errors import BiDoRAError
from peft_bidora.recipe.capabilities import CHANGES, LANES, PROCESSES, SHARDS, capabilities
from peft_bidora.recipe.lane_settings import load_settings
from peft_bidora.recipe.lanes import run_lanes
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import run

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")  # it tells that it casts
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def wide_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose sides are multiples of the 64 numbers that share a scale."""
    folder = shutil.copytree(model_folder, tmp_path_factory.mktemp("wide") / "model")
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    BertModel(BertConfig(vocab_size=vocabulary, max_position_embeddings=32, **shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "bidora", "full"])
@pytest.mark.parametrize("key", CHANGES)
def test_what_is_said_of_a_key_is_so(key: str, method: str, make_recipe: Make, wide_folder: Path) -> None:
    path = make_recipe(model=str(wide_folder), method=method, retrain__steps=2, search__steps=2)
    reason = capabilities(prepare(load_recipe(path)))[key]
    if reason is None:
        assert run(load_recipe(path, [key]))["method"] == method
    elif "has no search" in reason:
        assert method != "bidora"
    else:
        with pytest.raises(BiDoRAError) as caught:
            prepare(load_recipe(path, [key]))
        assert reason == " ".join(caught.value.faults)


@pytest.mark.parametrize("method", ["bidora", "full"])
def test_what_is_said_of_lanes_is_so(method: str, make_recipe: Make, tmp_path: Path) -> None:
    path = make_recipe(method=method, retrain__steps=2, search__steps=2)
    reason = capabilities(prepare(load_recipe(path)))[LANES]
    if reason is None:
        assert len(run_lanes(load_settings(path, [], ["seed=0..1"]), tmp_path / "run")) == 2
    else:
        with pytest.raises(BiDoRAError, match="method=full trains the base model"):
            load_settings(path, [], ["seed=0..1"])


def test_packed_weights_do_not_go_with_what_a_recipe_has_already(make_recipe: Make) -> None:
    found = capabilities(prepare(load_recipe(make_recipe(search__hypergradient="exact", search__batch_size=3))))
    assert "cannot be differentiated twice" in str(found["quantization=8bit"])
    for key in (PROCESSES, SHARDS):
        assert "search.batch_size=3: expected a multiple of the 2 processes" in str(found[key])
    assert "search.hypergradient=exact differentiates twice, and FSDP lets" in str(found[SHARDS])
    assert capabilities(prepare(load_recipe(make_recipe())))[SHARDS] is None  # test_distributed_run.py trains such
