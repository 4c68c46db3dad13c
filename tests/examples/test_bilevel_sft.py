"""BilevelMixin in front of TRL's SFTTrainer."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

pytest.importorskip("trl", reason="the extra `trl` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own are not ours to mend


def test_search_moves_the_magnitudes_and_saves_a_plain_adapter(load_example, tmp_path: Path) -> None:
    example = load_example("bilevel_sft")
    trainer = example.main(["--output", str(tmp_path), "--steps", "6"])
    history = [entry for entry in trainer.state.log_history if "upper_loss" in entry]
    assert {"loss", "upper_loss", "hypergradient_norm", "mean_token_accuracy"} <= history[-1].keys()
    assert trainer._upper.steps == 3
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(example.make_model(example.make_tokenizer()), tmp_path)
    found = dict(loaded.named_parameters())
    for name, parameter in trainer.levels.magnitude.items():
        assert torch.equal(found[name], parameter)
        layer = trainer.model.get_submodule(name.split(".lora_magnitude_vector")[0])
        initial = layer.get_base_layer().weight.norm(dim=0)  # GPT-2 stores (in, out)
        assert not torch.allclose(parameter, initial, atol=1e-3)


def test_both_levels_learn_the_completion_alone(load_example, tmp_path: Path) -> None:
    trainer = load_example("bilevel_sft").main(["--output", str(tmp_path), "--steps", "2"])
    for rows in (trainer.train_dataset, trainer.upper_dataset):
        row = rows[0]
        learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert trainer.processing_class.decode(learned).startswith("the ")
        assert trainer.processing_class.decode(row["input_ids"]).startswith("paint the ")


def test_rows_of_the_levels_are_disjoint(load_example, tmp_path: Path) -> None:
    trainer = load_example("bilevel_sft").main(["--output", str(tmp_path), "--steps", "2"])
    lower, upper = (
        {tuple(row["input_ids"]) for row in rows} for rows in (trainer.train_dataset, trainer.upper_dataset)
    )
    assert lower
    assert upper
    assert not lower & upper
