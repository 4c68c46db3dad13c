"""Which checkpoints are gone on from."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

from peft_bidora.training.checkpoint import last_whole_checkpoint


@pytest.fixture
def run(make_adapted: Any, make_rows: Any, tmp_path: Path) -> Path:
    args = TrainingArguments(
        str(tmp_path / "run"), max_steps=4, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    Trainer(model=make_adapted(), args=args, train_dataset=make_rows(16)).train()
    return tmp_path / "run"


def test_newest_whole_checkpoint_is_found(run: Path) -> None:
    (run / "checkpoint-9").write_text("a file")
    (run / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(run) == run / "checkpoint-4"
    assert last_whole_checkpoint(run / "nowhere") is None


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("left", [None, 0, 0.5])
def test_checkpoint_of_which_a_file_is_missing_or_cut_is_passed_over(run: Path, caplog: Any, name: str, left: Any):
    path = run / "checkpoint-4" / name
    content = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(content[: int(len(content) * left)])
    assert last_whole_checkpoint(run) == run / "checkpoint-2"
    assert str(run / "checkpoint-4") in caplog.text
    assert path.name in caplog.text or path.suffix in caplog.text or f"no {path.stem}" in caplog.text


def test_generator_states_with_a_damaged_byte_are_found(run: Path) -> None:
    path = run / "checkpoint-4" / "rng_state.pth"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert last_whole_checkpoint(run) == run / "checkpoint-2"


@pytest.mark.parametrize("state", [{}, {"global_step": 4}, []])
def test_state_that_says_nothing_of_the_training_is_damaged(run: Path, state: Any) -> None:
    (run / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(state))
    assert last_whole_checkpoint(run) == run / "checkpoint-2"
