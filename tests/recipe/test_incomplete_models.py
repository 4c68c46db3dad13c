"""Models whose weights lack something of what their configuration says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from peft_bidora.errors import ModelError
from peft_bidora.recipe.finished import evaluate
from peft_bidora.recipe.load import load_recipe
from peft_bidora.recipe.prepare import prepare
from peft_bidora.recipe.run import run
from peft_bidora.training.prediction import predict

Make = Callable[..., Path]


@pytest.fixture
def without(model_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the model whose weights lack what has a word in its name."""

    def make(word: str) -> Path:
        folder = shutil.copytree(model_folder, tmp_path / "incomplete")
        weights = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if word not in name}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("method", ["lora", "bidora", "full"])
def test_pooler_that_the_weights_lack_is_trained_and_saved(
    method: str, make_recipe: Make, without: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = load_recipe(make_recipe(model=str(without("pooler")), method=method))
    metrics = run(recipe)
    assert "has no weights for bert.pooler" in caplog.text
    for name, score in evaluate(recipe.output).scores.items():
        # Batches of the same rows: float32 sums in another order at most.
        assert score == pytest.approx(metrics["test"][name], rel=1e-4, abs=1e-5)
    rows = [json.loads(line) for line in (recipe.output / "predictions.jsonl").read_text().splitlines()]
    stock: dict[str, Any] = {}
    exec("\n".join(metrics["loading_lines"]), stock)
    prepared = prepare(recipe)
    task, test = prepared.rows.task, prepared.rows.parts["test"]
    found = predict(stock["model"], task, stock["tokenizer"], test, max_length=prepared.max_length)
    for row, columns in zip(rows, task.prediction_columns(found), strict=True):
        assert columns["probabilities"] == pytest.approx(row["probabilities"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("word", ["layer.1.", "layer.1.attention.self.query.weight", "encoder"])
def test_encoder_that_would_be_random_is_refused(word: str, make_recipe: Make, without: Callable[[str], Path]) -> None:
    recipe = load_recipe(make_recipe(model=str(without(word)), method="lora"))
    with pytest.raises(ModelError, match=r"has no weights for \d+ tensors? of its base model: bert\.encoder"):
        run(recipe)
    assert not recipe.output.exists()


def test_weights_of_other_shapes_are_refused(make_recipe: Make, model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "wider")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ModelError, match=r"have other shapes than its config\.json says: bert\.encoder\.layer\.0"):
        run(load_recipe(make_recipe(model=str(folder), method="lora")))
