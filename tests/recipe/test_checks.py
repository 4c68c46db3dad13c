"""What does not go together is said before weights are loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BartConfig, BertConfig, GPT2Config, T5Config

from peft_bidora.errors import BiDoRAError, ModelError, RecipeError
from peft_bidora.recipe.checks import check_trackers, check_upper_steps, check_writes
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare

Make = Callable[..., Path]


@pytest.mark.parametrize(
    "changes",
    [{"search__steps": 3}, {"search__steps": None, "search__epochs": 0.3}],  # of 29 lower rows in batches of 4: 3 steps
)
def test_search_without_an_upper_step_is_refused(changes: dict[str, object], make_recipe: Make) -> None:
    recipe = load_recipe(make_recipe(search__lower_steps=4, **changes))
    with pytest.raises(RecipeError, match=r"search\.lower_steps=4: the search has 3 steps, so that no upper step"):
        prepare(recipe)
    check_upper_steps(load_recipe(make_recipe(search__lower_steps=3, **changes)), 29)
    check_upper_steps(recipe.model_copy(update={"method": "dora"}), 29)


def test_tracker_that_nobody_knows_or_has_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        check_trackers(["tensorbord", "tensorboard", "neptune", "all"])
    first, second, third = caught.value.faults
    assert first.startswith("report_to=tensorbord: expected trackers of")
    assert "Did you mean 'tensorboard'?" in first
    assert second == "report_to=neptune: its package is not installed. Install it, or leave it out."
    assert third.startswith("report_to=all: expected")
    for fine in ([], ["none"], ["all"], ["tensorboard"]):
        check_trackers(fine)


def test_tokenizer_of_another_model_is_refused(make_recipe: Make, model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["number"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"its tokenizer has 20 tokens, but the model has embeddings for 19\. Save"):
        prepare(load_recipe(make_recipe(model=str(folder))))


def test_encoder_is_not_asked_to_write(make_recipe: Make) -> None:
    with pytest.raises(BiDoRAError) as caught:
        prepare(load_recipe(make_recipe(task="text-generation")))
    assert any("is an encoder (bert), which writes no text" in fault for fault in caught.value.faults)
    assert not any("end-of-text" in fault for fault in caught.value.faults)
    for config in (GPT2Config(), T5Config(), BartConfig(), BertConfig(is_decoder=True)):
        check_writes("name", "text-generation", config)
    check_writes("name", "regression", BertConfig())
