"""What weights that are divided over processes go together with is said before weights are loaded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion

from peft_bidora import launched
from peft_bidora.errors import ModelError, RecipeError
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.run import run
from peft_bidora.recipe.sharding import check_fsdp, check_sharding, divides_weights

Make = Callable[..., Path]
# What `accelerate launch --use_fsdp --fsdp_version 2` sets.
LAUNCHED = {
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def test_options_that_divide_weights_in_another_way_are_refused_at_once() -> None:
    check_fsdp(LAUNCHED)
    check_fsdp({"FSDP_VERSION": "2"})
    other = {"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD", "FSDP_OFFLOAD_PARAMS": "true"}
    with pytest.raises(RecipeError) as caught:
        check_fsdp({**LAUNCHED, "FSDP_VERSION": "1", **other, "FSDP_ACTIVATION_CHECKPOINTING": "True"})
    assert caught.value.faults == (
        "FSDP_VERSION=1: expected 2. Start it with --fsdp_version 2, or torchrun with FSDP_VERSION=2.",
        "FSDP_RESHARD_AFTER_FORWARD=FULL_SHARD: expected true. Leave --fsdp_reshard_after_forward out.",
        "FSDP_OFFLOAD_PARAMS=true: expected false. Leave --fsdp_offload_params out; weights stay on their devices.",
        "FSDP_ACTIVATION_CHECKPOINTING=True: expected false. Set activation_checkpointing: true in the recipe.",
    )
    with pytest.raises(RecipeError, match="FSDP_VERSION=1: expected 2"):
        check_fsdp({})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "full"}, "method=full trains them all. Use lora, dora or bidora"),
        ({"quantization": "8bit"}, "quantization=8bit: packed weights are not divided"),
        ({"search__hypergradient": "exact"}, "search.hypergradient=exact differentiates twice"),
    ],
)
def test_recipe_whose_weights_cannot_be_divided_is_refused(
    changes: dict[str, Any], words: str, make_recipe: Make
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_sharding(load_recipe(make_recipe(**changes)))
    (fault,) = caught.value.faults
    assert words in fault
    assert fault.endswith("start it without --use_fsdp.")


def test_recipe_without_a_search_or_with_other_estimators_is_divided(make_recipe: Make) -> None:
    for changes in ({"method": "dora", "search__hypergradient": "exact"}, {"method": "lora"}, {}):
        check_sharding(load_recipe(make_recipe(**changes)))


def test_processes_divide_weights_where_they_are_told_to_and_are_several(make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(method="full", retrain__batch_size=3))
    assert not divides_weights(recipe, 1, {})
    assert divides_weights(load_recipe(make_recipe()), 2, LAUNCHED)
    assert not divides_weights(load_recipe(make_recipe(method="full")), 2, None)
    with pytest.raises(RecipeError) as caught:
        divides_weights(recipe, 2, {})
    assert [fault.partition(":")[0].split(" ")[0] for fault in caught.value.faults] == [
        "retrain.batch_size=3",
        "FSDP_VERSION=1",
        "FSDP",
    ]


def test_torch_that_divides_all_or_nothing_is_refused(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cpu"))
    with pytest.raises(RecipeError, match=r"FSDP: expected torch 2\.7 or later, got 2\.6\.0\+cpu"):
        divides_weights(load_recipe(make_recipe()), 2, LAUNCHED)


def test_wish_to_divide_is_hidden_from_the_libraries_for_the_time_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    for said in ("", "false"):
        monkeypatch.setenv(launched.FSDP, said)
        with launched.fsdp() as options:
            assert options is None
    monkeypatch.setenv(launched.FSDP, "True")
    with launched.fsdp() as options:
        assert options == LAUNCHED
        assert launched.FSDP not in os.environ
    assert os.environ[launched.FSDP] == "True"


def test_one_process_trains_with_whole_weights_and_says_so(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launched.FSDP, "true")
    said: list[str] = []
    recipe = load_recipe(make_recipe(method="full", retrain__steps=2))
    assert run(recipe, announce=said.append)["method"] == "full"
    assert said[0] == "FSDP is asked for and one process was started, which holds the whole weights."


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed steps inside of backward.*Start the processes with torchrun"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "fp16: two optimisers break its loss scaling.*precision=bfloat16"),
    ],
)
def test_what_else_accelerate_is_told_is_refused_before_anything_is_loaded(
    name: str, said: str, words: str, make_recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, said)
    recipe = load_recipe(make_recipe(model="no/model"))
    with pytest.raises(RecipeError, match=words):
        run(recipe)
    monkeypatch.setenv(name, "no")  # accelerate's word for none
    with pytest.raises(ModelError):
        run(recipe)
